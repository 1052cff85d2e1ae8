"""The main job through every real part: client, API, PostgreSQL, Redis, Celery, training child, weights."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJobEvent

from service.cli import demo
from service.cli.download import download
from tests.e2e.conftest import JUDGE, JUDGE_USAGE, Stack, troll
from tests.workers.graders import jails

GUIDE = Path(__file__).parents[2] / "examples" / "hosted_guide.py"
ENDED = ("succeeded", "failed", "cancelled")
PATIENCE = 600
"""How long a job may take on a machine that is busy, in seconds."""


def wait(stack: Stack, id: str, until: Callable[[Any], bool] = lambda job: job.status in ENDED) -> Any:
    deadline = time.monotonic() + PATIENCE
    while True:
        job = stack.client.fine_tuning.jobs.retrieve(id)
        if until(job):
            return job
        assert job.status not in ENDED, f"{job.status}: {job.error}"
        assert time.monotonic() < deadline, f"{id} is still {job.status}"
        time.sleep(0.1)


def events(stack: Stack, id: str) -> list[FineTuningJobEvent]:
    """Every event, oldest first, through the client's own pagination."""
    return list(stack.client.fine_tuning.jobs.list_events(id, limit=100))[::-1]


def assert_told_once_and_in_order(told: list[FineTuningJobEvent], steps: int) -> None:
    assert [event.seq for event in told] == list(range(1, len(told) + 1))  # type: ignore[attr-defined]
    assert [event.data["step"] for event in told if event.type == "metrics"] == list(range(steps + 1))  # type: ignore[index]


def right_of_ten(stack: Stack, model: str) -> int:
    """How many of ten additions a model gets right when it is asked."""
    asked = [(a, a + 7) for a in range(12, 92, 8)]
    answers = [
        stack.client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": f"{a}+{b}="}], temperature=0
        )
        for a, b in asked
    ]
    texts = [answer.choices[0].message.content for answer in answers]
    return sum(text == str(a + b) for text, (a, b) in zip(texts, asked, strict=True))


def test_a_job_improves_the_model_and_leaves_weights(stack: Stack, create: Callable[..., Any], tmp_path: Path) -> None:
    job = wait(stack, create(n_steps=16, eval_interval=8).id)
    assert (job.status, job.error) == ("succeeded", None)
    told = events(stack, job.id)
    assert_told_once_and_in_order(told, steps=16)
    rewards = {event.data["step"]: event.data["full_valid_mean_reward"] for event in told if event.type == "metrics"}  # type: ignore[index]
    assert rewards[0] < 0.55
    assert rewards[16] > rewards[0] + 0.25
    assert stack.client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
    table = stack.client.files.content(job.result_files[0]).text
    assert len(table.splitlines()) == 1 + 17
    checkpoints = list(stack.client.fine_tuning.jobs.checkpoints.list(job.id))
    assert checkpoints[0].step_number == 16
    assert right_of_ten(stack, job.fine_tuned_model) > right_of_ten(stack, stack.model)
    assert right_of_ten(stack, checkpoints[0].fine_tuned_model_checkpoint) == right_of_ten(stack, job.fine_tuned_model)
    download(stack.client, job.fine_tuned_model, tmp_path / "weights")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(tmp_path / "weights")
    assert AutoTokenizer.from_pretrained(tmp_path / "weights").chat_template
    where = ("--data-dir", str(stack.data_dir))
    exported = tmp_path / "exported"
    pulled = troll("pull", job.fine_tuned_model, "--format", "huggingface", "--output", str(exported), *where)
    assert pulled.returncode == 0, pulled.stdout + pulled.stderr
    weights = "model.safetensors"
    assert (exported / weights).read_bytes() == (tmp_path / "weights" / weights).read_bytes()


def test_a_killed_training_child_resumes_from_its_checkpoint(stack: Stack, create: Callable[..., Any]) -> None:
    id = create(n_steps=12, eval_interval=4).id
    wait(stack, id, lambda job: job.model_extra["progress"]["step"] >= 5)
    children = stack.training_children()
    assert children
    for child in children:
        child.kill()
    job = wait(stack, id)
    assert (job.status, job.model_extra["progress"]["attempt"]) == ("succeeded", 2)
    told = events(stack, id)
    assert_told_once_and_in_order(told, steps=12)
    assert any("esumed from" in event.message for event in told)


def test_a_running_job_is_cancelled_at_once(stack: Stack, create: Callable[..., Any]) -> None:
    id = create(n_steps=2000).id
    wait(stack, id, lambda job: job.model_extra["progress"]["step"] >= 1)
    stack.client.fine_tuning.jobs.cancel(id)
    # At the next step and not after two thousand.
    job = wait(stack, id)
    assert (job.status, job.model_extra["progress"]["step"] < 1000) == ("cancelled", True)
    assert [event.message for event in events(stack, id)][-1] == "Job cancelled"


def test_a_paused_job_goes_on_from_its_checkpoint(stack: Stack, create: Callable[..., Any]) -> None:
    id = create(n_steps=12, eval_interval=100).id
    wait(stack, id, lambda job: job.model_extra["progress"]["step"] >= 2)
    # "paused" is no status that the client's types know, so the strict client is not asked to parse it.
    raw = stack.client.fine_tuning.jobs.with_raw_response
    raw.pause(id)
    deadline = time.monotonic() + PATIENCE
    while raw.retrieve(id).http_response.json()["status"] != "paused":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    raw.resume(id)
    deadline = time.monotonic() + PATIENCE
    while (job := raw.retrieve(id).http_response.json())["status"] not in ENDED:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert job["status"] == "succeeded"
    assert_told_once_and_in_order(events(stack, id), steps=12)


def test_the_hosted_guides_workflow_needs_nothing_but_its_client(stack: Stack, tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "OPENAI_BASE_URL": str(stack.client.base_url),
        "OPENAI_API_KEY": stack.client.api_key,
    }
    command = [sys.executable, str(GUIDE), "--model", stack.model, "--steps", "8"]
    # Away from the project, whose modules it must not need.
    run = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    told = run.stdout
    assert re.findall(r"The grader gives (\S+) to", told) == ["1.0", "0.0"]
    assert [int(step) for step in re.findall(r"Step (\d+)/8,", told)] == sorted(range(9))
    steps = [int(step) for step in re.findall(r"[* ] step (\d+): validation reward", told)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == 8
    assert len(re.findall(r"\* step", told)) == 1
    question, _, answer = told.strip().splitlines()[-1].partition(" ")
    assert re.fullmatch(r"\d+\+\d+=", question)
    assert answer.strip()


RIGHT = """
def grade(sample, item):
    return 1.0 if sample["output_text"] == item["answer"] else 0.0
"""
ROWS = 12
"""Of each file: each answer takes a process in the jail."""
CODE_AND_JUDGE: Any = {
    "type": "multi",
    "graders": {
        "code": {"type": "python", "source": RIGHT},
        "judge": {
            "type": "score_model",
            "name": "judge",
            "model": JUDGE,
            "input": [{"role": "user", "content": "{{sample.output_text}} == {{item.answer}}"}],
        },
    },
    "calculate_output": "(code + judge) / 2",
}


def test_a_movers_job_with_code_and_a_judge_needs_the_official_client_alone(stack: Stack, tmp_path: Path) -> None:
    """From files to answers of the result, as programs for the hosted service do it; the tokens of the judge count."""
    jails.first_tier()
    paths = demo.write_rows(tmp_path)
    for path in paths:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:ROWS]))
    # The client's type of a multi grader has a single grader, so a strict one takes none in answers.
    with OpenAI(base_url=str(stack.client.base_url), api_key=stack.client.api_key) as client:
        files = [client.files.create(file=path, purpose="fine-tune") for path in paths]
        assert {client.files.wait_for_processing(file.id).status for file in files} == {"processed"}

        graders = client.fine_tuning.alpha.graders
        graders.validate(grader=CODE_AND_JUDGE)
        ran = graders.run(grader=CODE_AND_JUDGE, model_sample="46", item={"answer": "46"})
        assert (ran.reward, ran.sub_rewards, ran.metadata.token_usage) == (1.0, {"code": 1.0, "judge": 1.0}, 16)

        # As a program has them that was written for another model.
        settings: Any = {"n_epochs": 3, "max_completion_tokens": 1024}
        settings |= {"n_steps": 2, "batch_size": 3, "group_size": 3, "eval_interval": 1}
        method: Any = {
            "type": "reinforcement",
            "reinforcement": {"grader": CODE_AND_JUDGE, "hyperparameters": settings},
        }
        job = client.fine_tuning.jobs.create(
            model=stack.model,
            training_file=files[0].id,
            validation_file=files[1].id,
            method=method,
            seed=3,
            suffix="mover",
            metadata={"team": "movers"},
        )
        deadline = time.monotonic() + PATIENCE
        while job.status not in ENDED:
            assert time.monotonic() < deadline, f"the job is still {job.status}"
            time.sleep(0.2)
            job = client.fine_tuning.jobs.retrieve(job.id)
        assert job.status == "succeeded", job.error
        assert [each.id for each in client.fine_tuning.jobs.list(metadata={"team": "movers"})] == [job.id]

        retrieved = client.fine_tuning.jobs.with_raw_response.retrieve(job.id).http_response.json()
        shown = retrieved["method"]["reinforcement"]["hyperparameters"]
        assert (shown["n_epochs"], shown["n_steps"]) == (1, 2)
        assert shown["max_completion_tokens"] < 1024
        warned = [event.message for event in client.fine_tuning.jobs.list_events(job.id) if event.level == "warn"]
        assert "n_epochs is 1 and not 3: n_steps decides" in warned
        assert any(f"max_completion_tokens is {shown['max_completion_tokens']} and not 1024" in text for text in warned)

        told = [event.data for event in client.fine_tuning.jobs.list_events(job.id) if event.type == "metrics"]
        steps: dict[int, Any] = {data["step"]: data for data in told}  # type: ignore[index]
        assert steps.keys() == {0, 1, 2}
        for step, data in steps.items():
            answers = {"train": 9 if step else 0, "valid": ROWS}
            (row,) = data["usage"]["graders"]
            assert (row["name"], row["type"], row["model"]) == ("judge", "score_model", JUDGE)
            by_model = data["model_graders_token_usage"][JUDGE]
            for part, count in answers.items():
                used = count * JUDGE_USAGE["prompt_tokens"]
                assert by_model[f"{'eval' if part == 'valid' else part}_prompt_tokens"] == used
                assert row[f"{part}_prompt_tokens_count"] == (used or None)
            means = {each["name"]: each["valid_reward_mean"] for each in data["scores"]["graders"]}
            assert means["code"] == means["judge"] == data["full_valid_mean_reward"]

        checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
        assert [each.step_number for each in checkpoints] == [2, 1]
        assert job.fine_tuned_model is not None
        asked: Any = {"input": [{"role": "user", "content": "12+34="}], "temperature": 0}
        for model in (job.fine_tuned_model, checkpoints[0].fine_tuned_model_checkpoint):
            said = client.responses.create(model=model, **asked)
            assert (said.status, said.model) == ("completed", model)
            assert re.fullmatch(r"\d+", said.output_text)
            with client.responses.stream(model=model, **asked) as stream:
                assert stream.get_final_response().output_text == said.output_text
        table = client.files.content(job.result_files[0]).text
        assert len(table.splitlines()) == 1 + 3
