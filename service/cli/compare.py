"""``troll compare``: how runs differ in what was asked for, and in what came out."""

import csv
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import curves
from service.cli.connection import AsJSON, StackFolder, connect
from service.cli.failure import CommandError
from service.cli.output import show_table

if TYPE_CHECKING:
    from openai import OpenAI

MOST = 8
VALIDATION = {"full_valid_mean_reward": max, "full_valid_loss": min}
"""What runs are judged by, and which of two numbers is the better one."""


def compare(
    jobs: Annotated[list[str], typer.Argument(help=f"Ids of 2 to {MOST} jobs; finished or at work.")],
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for spreadsheets.")] = False,
) -> None:
    """Show the settings in which jobs differ, their validation reward (or loss), steps and GPU time."""
    if not 2 <= len(dict.fromkeys(jobs)) <= MOST:
        raise typer.BadParameter(f"name 2 to {MOST} different jobs.")
    client = connect(data_dir)
    runs = [_run(client, each) for each in dict.fromkeys(jobs)]
    settings = _differing([run.pop("settings") for run in runs])
    if as_json:
        typer.echo(json.dumps([run | {"settings": own} for run, own in zip(runs, settings, strict=True)]))
        return
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([*runs[0], *settings[0]])
        writer.writerows([*run.values(), *own.values()] for run, own in zip(runs, settings, strict=True))
        return
    rows = {_named(name): [_shown(run[name]) for run in runs] for name in runs[0] if name != "job"}
    rows |= {name: [_shown(own[name]) for own in settings] for name in settings[0]}
    show_table(("", *(run["job"] for run in runs)), [(name, *values) for name, values in rows.items()])


def _run(client: "OpenAI", job_id: str) -> dict[str, Any]:
    """What came out of a job, and under ``settings`` what it was asked to do."""
    job = client.fine_tuning.jobs.retrieve(job_id).to_dict()
    method: Any = job["method"]
    if method is None:
        raise CommandError(f"{job_id} cannot be read by this server: {job['error']}")
    progress: Any = job["progress"]
    measured = curves.read(client, job_id, list(VALIDATION))
    name = next((each for each in VALIDATION if measured.points(each)), "full_valid_mean_reward")
    points = measured.points(name)
    best = VALIDATION[name](points, key=lambda point: point[1]) if points else (None, None)
    first, last = (points[0][1], points[-1][1]) if points else (None, None)
    return {
        "job": job_id,
        "status": job["status"],
        "step": progress["step"],
        "steps": progress["total_steps"],
        "measure": name.removeprefix("full_").replace("_mean_", "_") if points else None,
        "before": first,
        "final": last,
        "best": best[1],
        "best_step": None if best[0] is None else int(best[0]),
        "gpu_seconds": progress["gpu_seconds"],
        "trained_tokens": job["trained_tokens"],
        "tuned_model": job["fine_tuned_model"],
        "settings": {
            **{part: job[part] for part in ("model", "training_file", "validation_file", "seed")},
            **_flat(method),
        },
    }


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; lists stay as they are."""
    flat: dict[str, Any] = {}
    for name, each in value.items():
        flat |= _flat(each, f"{prefix}{name}.") if isinstance(each, dict) and each else {prefix + name: each}
    return flat


def _differing(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each its settings that are not the same in all; None where it has none of that name."""
    names = [
        name
        for name in dict.fromkeys(name for each in settings for name in each)
        if any(each.get(name) != settings[0].get(name) for each in settings)
    ]
    short = {name: name.rpartition("hyperparameters.")[2] for name in names}
    unique = len(set(short.values())) == len(names)
    return [{short[name] if unique else name: each.get(name) for name in names} for each in settings]


def _named(name: str) -> str:
    return name.replace("gpu_seconds", "GPU-seconds").replace("_", " ")


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
