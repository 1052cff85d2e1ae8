"""``troll demo``: the whole service at work on one machine, from an empty folder to weights that got better.

A tiny language model that answers two-digit additions right less than half of the time becomes one that nearly always
does. Everything goes the way a user's job goes: official client, HTTP, PostgreSQL, Celery, training child, archive.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openai import OpenAI
from rich.console import Console
from rich.table import Table

from service.cli.download import download
from service.cli.failure import CommandError
from service.cli.following import show
from service.embedded.detached import start_detached, stop_stack
from service.embedded.jail import Jail
from service.embedded.stack import Options, child_environment

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

MARKER = ".troll-demo"
HELD_OUT = 200
SHOWN = 8
HYPERPARAMETERS = {
    "learning_rate": 1e-4,
    "batch_size": 32,
    "group_size": 8,
    "mini_batches": 8,
    "kl_bound": 0.05,
    "n_steps": 70,
    "eval_interval": 20,
    "max_completion_tokens": 8,
}
GRADER = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}


def run(folder: Path, jail: Jail = Jail.AUTO) -> int:
    """Run the demo in ``folder``, which stays afterwards. Returns the exit code: 0 when the job succeeded."""
    began, console = time.monotonic(), Console()
    forget_other_services()
    _clear(folder)
    with console.status("Starting PostgreSQL, Redis, API and workers; pre-training a tiny base model"):
        stack = start_detached(Options(folder, port=0, demo_model=True, jail=jail))
    try:
        console.print(f"Ready after {time.monotonic() - began:.0f} s: {stack['base_url']}", highlight=False)
        console.print(stack["jail_note"], soft_wrap=True, highlight=False, markup=False)
        client = OpenAI(base_url=stack["base_url"], api_key=stack["api_key"])
        result = _train_and_compare(client, stack["model"], folder, console)
    finally:
        with console.status("Stopping"):
            stop_stack(folder)
    print(json.dumps({**result, "seconds_total": round(time.monotonic() - began, 1)}), flush=True)
    return 0 if result["status"] == "succeeded" else 1


def _train_and_compare(client: OpenAI, model: str, folder: Path, console: Console) -> dict[str, Any]:
    training, held_out = write_rows(folder)
    began = time.monotonic()
    job = show(client, submit(client, model, training, held_out).id, console)
    result: dict[str, Any] = {
        "job_id": job.id,
        "status": job.status,
        "success_before": None,
        "success_after": None,
        "steps": (job.model_extra or {})["progress"]["step"],
        "seconds_training": round(time.monotonic() - began, 1),
    }
    if job.fine_tuned_model is None:
        console.print(f"The job {job.status}: {job.error.message if job.error else 'see its events'}", markup=False)
        return result
    weights = folder / "weights"
    download(client, job.fine_tuned_model, weights)
    console.print(f"Downloaded {job.fine_tuned_model} to {weights}", soft_wrap=True, highlight=False)
    with console.status("Sampling both models on additions that neither training saw"):
        before, after = _sample([folder / "models" / model, weights], held_out)
    _compare(before, after, console)
    return result | {"success_before": before["success"], "success_after": after["success"]}


def submit(client: OpenAI, model: str, training: Path, held_out: Path) -> "FineTuningJob":
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": HYPERPARAMETERS}}
    return client.fine_tuning.jobs.create(
        model=model,
        training_file=client.files.create(file=training, purpose="fine-tune").id,
        validation_file=client.files.create(file=held_out, purpose="fine-tune").id,
        seed=1,
        suffix="demo",
        method=method,
    )


def write_rows(folder: Path) -> tuple[Path, Path]:
    """Write training and held-out rows. A pair of numbers is in one of them only, whichever number comes first."""
    pairs = list(combinations_with_replacement(range(10, 100), 2))
    random.Random(0).shuffle(pairs)
    both_orders = [pair for a, b in pairs[HELD_OUT:] for pair in {(a, b), (b, a)}]
    training, held_out = folder / "additions.jsonl", folder / "held-out.jsonl"
    training.write_text(_jsonl(sorted(both_orders)))
    held_out.write_text(_jsonl(pairs[:HELD_OUT]))
    return training, held_out


def _jsonl(pairs: Iterable[tuple[int, int]]) -> str:
    rows = ({"messages": [{"role": "user", "content": f"{a}+{b}="}], "answer": str(a + b)} for a, b in pairs)
    return "".join(json.dumps(row) + "\n" for row in rows)


def _sample(models: list[Path], rows: Path) -> list[dict[str, Any]]:
    """Answers of each model at temperature 1, as ``python -m workers.demo sample`` reports them."""
    command = [sys.executable, "-m", "workers.demo", "sample"]
    processes = [
        subprocess.Popen(
            [*command, str(model), str(rows), "--seed", "0"],
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for model in models
    ]
    answers = [process.communicate() for process in processes]
    for process, model, (_, said) in zip(processes, models, answers, strict=True):
        if process.returncode != 0:
            raise CommandError(f"Sampling {model} failed:\n{said[-2000:]}")
    return [json.loads(out) for out, _ in answers]


def _compare(before: dict[str, Any], after: dict[str, Any], console: Console) -> None:
    table = Table("asked", "right", "before", "after", title="Answers at temperature 1")
    for old, new in zip(before["examples"][:SHOWN], after["examples"][:SHOWN], strict=True):
        table.add_row(old["prompt"], old["expected"], *(_colored(one["answer"], one["expected"]) for one in (old, new)))
    table.add_section()
    table.add_row(f"all {after['count']}", "", f"{before['success']:.1%} right", f"{after['success']:.1%} right")
    console.print(table)


def _colored(answer: str, expected: str) -> str:
    return f"[{'green' if answer == expected else 'red'}]{answer}[/]"


def _clear(folder: Path) -> None:
    """Begin anew in the folder of an earlier demo; leave every other folder alone."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise CommandError(f"{folder} holds something else than a demo. Name another folder with --data-dir.")
        stop_stack(folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def forget_other_services() -> None:
    """A demo never touches the servers and folders that the environment may name."""
    for name in list(os.environ):
        if name in ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL") or name.startswith("TROLL_"):
            del os.environ[name]
