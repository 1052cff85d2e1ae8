"""Tasks that need no download.

    python -m examples.tasks list
    python -m examples.tasks build ledger FOLDER             # base model, rows, job.yaml; prints what the base can do
    python -m examples.tasks.procedural spell_backward FOLDER  # rows and job.yaml of a generator of reasoning-gym

What ``build`` leaves is a job: put the folder of the base model into the service's models folder, then
``troll submit FOLDER/job.yaml --follow``.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import yaml

from examples.tasks.measure import pass_at_1
from examples.tasks.registry import TASKS
from examples.tasks.task import PARTS, Task

CACHE = Path(".data/tasks")
COUNTS = {"train": 640, "valid": 64, "held-out": 200}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names, and what they are")
    builder = commands.add_parser("build", help="make base model, rows and job")
    builder.add_argument("task", choices=TASKS)
    builder.add_argument("folder", type=Path)
    builder.add_argument("--seed", type=int, default=1, help="of the rows")
    builder.add_argument("--cache", type=Path, default=CACHE, help="where base models are kept (%(default)s)")
    given = parser.parse_args()
    if given.command == "list":
        for task in TASKS.values():
            print(f"{task.name:10} {task.about}")
    else:
        print(json.dumps(build(TASKS[given.task], given.folder, given.seed, given.cache)))


def build(task: Task, folder: Path, seed: int, cache: Path) -> dict[str, Any]:
    """Everything of a job in ``folder``. Returns what the base model can do on held-out rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        task.write_rows(folder / f"{part}.jsonl", part, COUNTS[part], seed)
    model = task.base(cache)
    (folder / "job.yaml").write_text(job(model.name, task.grader, task.max_completion_tokens))
    return {"model": str(model), **pass_at_1(model, task, folder / "held-out.jsonl")}


def job(model: str, grader: dict[str, Any], max_completion_tokens: int) -> str:
    """A job's file, beside its rows."""
    asked = {"learning_rate": 1e-4, "max_completion_tokens": max_completion_tokens}
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": asked}}
    files = {"training_file": "train.jsonl", "validation_file": "valid.jsonl"}
    return yaml.safe_dump({"model": model, **files, "method": method}, sort_keys=False)


if __name__ == "__main__":
    # Idle OpenMP threads that spin instead of sleeping slow a shared machine down by an order of magnitude.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
