"""The jobs of ``runs.yaml``: each published run, and the evaluation of a model that goes with them.

A job's files lie in a folder ``data`` beside the folder of the jobs; ``troll submit`` reads paths relative to a job.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from examples.paper.graders import GRADERS

TABLE = Path(__file__).with_name("runs.yaml")
DATA, JOBS = "data", "jobs"
SEED = 1
"""Of every job, so that objectives see the same prompts in the same order."""
ESTIMATORS, OBJECTIVES = ("grpo",), ("troll", "clip")
"""Of a line of the table that names none."""

Job = dict[str, Any]


def read_table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(TABLE.read_text())
    return table


def training_jobs(table: dict[str, Any]) -> dict[str, Job]:
    """The body of every training run's job, by the run's name. Raises ``ValueError`` for two runs of one name."""
    jobs: dict[str, Job] = {}
    for line in table["runs"]:
        for name, job in _jobs_of(table, line):
            if name in jobs:
                raise ValueError(f"Two lines of the table make the run {name}.")
            jobs[name] = job
    return jobs


def sources(table: dict[str, Any]) -> dict[str, str]:
    """Which of the authors' configurations each run is of."""
    return {name: line["source"] for line in table["runs"] for name, _ in _jobs_of(table, line)}


def evaluation_job(table: dict[str, Any], model: str) -> Job:
    """The body of a job that measures ``model`` as the runs on DAPO-Math are: on their validation rows and all sets."""
    data = table["data"]["dapo"]
    h = table["hyperparameters"]
    own = {"name": "dapo", "file": data["validation_file"]}
    own |= {"samples_per_row": h["eval_samples"], "temperature": h["eval_temperature"]}
    parts = {
        "grader": GRADERS[data["grader"]],
        "validation_sets": [_placed(each) for each in [own, *table["validation_sets"][data["validation_sets"]]]],
        "hyperparameters": {"max_completion_tokens": data["hyperparameters"]["max_completion_tokens"]},
    }
    return {"model": model, "seed": SEED, "method": {"type": "evaluation", "evaluation": parts}}


def write(folder: Path, jobs: dict[str, Job]) -> list[Path]:
    """A file for each job in ``folder/jobs``. Returns their paths."""
    (folder / JOBS).mkdir(parents=True, exist_ok=True)
    paths = [folder / JOBS / f"{name}.yaml" for name in jobs]
    for path, job in zip(paths, jobs.values(), strict=True):
        path.write_text(yaml.safe_dump(job, sort_keys=False, width=120))
    return paths


def _jobs_of(table: dict[str, Any], line: dict[str, Any]) -> Iterator[tuple[str, Job]]:
    of_each = product(
        line["models"],
        line["data"],
        line.get("estimators", ESTIMATORS),
        line.get("objectives", OBJECTIVES),
        line.get("changes", {"": {}}).items(),
    )
    for model, data, estimator, objective, (change, changed) in of_each:
        name = "-".join(filter(None, (data, model, estimator, objective, change)))
        yield name, _training_job(table, name, model, data, estimator, objective, changed)


def _training_job(
    table: dict[str, Any], name: str, model: str, data: str, estimator: str, objective: str, changed: dict[str, Any]
) -> Job:
    rows, how = table["data"][data], table["estimators"][estimator]
    hyperparameters = (
        table["hyperparameters"]
        | table["objectives"][objective]
        | how["hyperparameters"]
        | how.get(objective, {})
        | rows["hyperparameters"]
        | changed
    )
    parts = {"grader": GRADERS[rows["grader"]], "hyperparameters": hyperparameters}
    if "validation_sets" in rows:
        parts["validation_sets"] = [_placed(each) for each in table["validation_sets"][rows["validation_sets"]]]
    return {
        "model": table["models"][model],
        "training_file": _place(rows["training_file"]),
        "validation_file": _place(rows["validation_file"]),
        "suffix": name,
        "seed": SEED,
        "method": {"type": "reinforcement", "reinforcement": parts},
    }


def _placed(validation_set: dict[str, Any]) -> dict[str, Any]:
    return validation_set | {"file": _place(validation_set["file"])}


def _place(file: str) -> str:
    return f"../{DATA}/{file}"
