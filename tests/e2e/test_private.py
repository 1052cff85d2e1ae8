"""What a running service leaves on the disk: nothing that others may read, and nothing of chats and grader runs."""

import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from service.cli import demo
from tests.e2e.conftest import Stack
from tests.e2e.test_main_job import PATIENCE, wait
from tests.factories import GRADER

MARK = "x7-this-must-not-be-found"


def everything(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        yield from (Path(root) / name for name in [*folders, *files])


def test_nothing_in_the_data_folder_is_for_others(stack: Stack, datasets: tuple[str, str]) -> None:
    training, held_out = datasets
    grader: Any = demo.GRADER
    hyperparameters: Any = demo.HYPERPARAMETERS | {"n_steps": 2, "eval_interval": 1, "lora_rank": 4}
    job = stack.client.fine_tuning.jobs.create(
        model=stack.model,
        training_file=training,
        validation_file=held_out,
        method={"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": hyperparameters}},
        integrations=[{"type": "wandb", "wandb": {"project": "modes"}}],
    )
    # They are there until the job ends.
    rows = (stack.data_dir / "jobs" / job.id / "training.jsonl").stat()
    assert rows.st_mode & 0o077 == 0
    pending = stack.client.uploads.create(bytes=4, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    stack.client.uploads.parts.create(pending.id, data=b"{}\n\n")
    done = wait(stack, job.id)
    assert done.status == "succeeded", done.error
    chat(stack, done.fine_tuned_model, "12+34=")
    found = list(everything(stack.data_dir))
    told = {path.relative_to(stack.data_dir).parts[0] for path in found}
    assert told >= {
        "files",
        "uploads",
        "jobs",
        "logs",
        "models",
        "postgres",
        "redis",
        "run",
        "first_key",
        "secrets.json",
    }
    kept = {
        path.relative_to(stack.data_dir / "jobs" / job.id).parts[0]
        for path in everything(stack.data_dir / "jobs" / job.id)
    }
    assert kept >= {"attempt-1", "wandb"}
    open_to_others = {
        str(path.relative_to(stack.data_dir)): oct(mode)
        for path in found
        # What lies in ``models`` keeps its mode, behind a folder that is closed.
        if stack.data_dir / "models" not in path.parents
        if not stat.S_ISLNK(mode := path.lstat().st_mode) and mode & 0o077
    }
    assert open_to_others == {}


def chat(stack: Stack, model: str, text: str) -> None:
    messages: Any = [{"role": "user", "content": text}]
    stack.client.chat.completions.create(model=model, messages=messages, max_completion_tokens=4)


def test_prompts_and_graders_are_written_down_nowhere(stack: Stack) -> None:
    chat(stack, stack.model, MARK)
    grader: Any = GRADER | {"reference": MARK}
    ran = stack.client.fine_tuning.alpha.graders.run(grader=grader, model_sample=MARK, item={})
    assert ran.reward == 1.0
    places = [stack.data_dir / name for name in ("redis", "logs", "run", "jobs", "uploads", "postgres")]
    files = [path for place in places for path in everything(place) if path.is_file()]
    assert [path for path in files if MARK.encode() in path.read_bytes()] == []
    assert list((stack.data_dir / "redis").iterdir()) == []


def test_a_job_whose_doorbell_went_down_with_redis_runs(stack: Stack, create: Callable[..., Any]) -> None:
    first = create(n_steps=2000).id
    wait(stack, first, lambda job: job.model_extra["progress"]["step"] >= 1)
    second = create(n_steps=2).id
    (redis,) = [each for each in recorded(stack) if each["name"] == "redis"]
    os.kill(redis["pid"], signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while [each["pid"] for each in recorded(stack) if each["name"] == "redis"] == [redis["pid"]]:
        assert time.monotonic() < deadline, "Redis is not started again"
        time.sleep(0.1)
    stack.client.with_options(max_retries=10).fine_tuning.jobs.cancel(first)
    assert wait(stack, second).status == "succeeded"


def recorded(stack: Stack) -> list[dict[str, Any]]:
    return list(json.loads((stack.data_dir / "processes.json").read_text()))
