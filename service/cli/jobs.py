"""``troll submit``, ``troll follow`` and ``troll jobs``: everything here goes over HTTP, by the official client."""

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from service.cli import following, submission
from service.cli.connection import AsJSON, StackFolder, connect
from service.cli.output import show_table

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

PAGE = 100
"""Jobs that are fetched at a time where all are shown."""

commands = typer.Typer(no_args_is_help=True, help="Your organisation's jobs.")


def submit(
    file: Annotated[Path, typer.Argument(help="YAML: model, training_file, validation_file, method, …")],
    then_follow: Annotated[bool, typer.Option("--follow", help="Follow the job until it ends.")] = False,
    data_dir: StackFolder = None,
) -> None:
    """Upload a job's files, create it, and print its id."""
    document = submission.read(file)
    client = connect(data_dir)
    job = submission.create(client, document)
    typer.echo(job.id)
    typer.echo(f"GPU time: {_cost(job)}", err=True)
    if then_follow:
        follow(job.id, data_dir)


def follow(job_id: str, data_dir: StackFolder = None) -> None:
    """Watch a job until it ends. Exit code 0 only if it succeeded. Ctrl-C leaves the job running."""
    client, console = connect(data_dir), Console(stderr=True)
    try:
        job = following.show(client, job_id, console)
    except KeyboardInterrupt:
        typer.echo(f"\n{job_id} goes on. Watch it again: troll follow {job_id}", err=True)
        typer.echo(f"End it: troll jobs cancel {job_id}", err=True)
        raise typer.Exit(130) from None
    if job.status == "succeeded":
        if job.fine_tuned_model is not None:
            typer.echo(f"Get the weights: troll pull {job.fine_tuned_model}", err=True)
        return
    reason = f": {job.error.message}" if job.error else ""
    typer.secho(f"{job_id} {job.status}{reason}", err=True, fg="red")
    raise typer.Exit(1)


@commands.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show at most this many, newest first.")] = 20,
    everything: Annotated[bool, typer.Option("--all", help="Show all of them.")] = False,
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Show jobs, newest first."""
    pages = connect(data_dir).fine_tuning.jobs.list(limit=PAGE if everything else limit)
    # A page that is iterated over fetches those behind it.
    jobs = list(pages) if everything else pages.data
    if as_json:
        typer.echo(json.dumps([job.to_dict() for job in jobs]))
        return
    show_table(
        ("job", "status", "step", "model", "tuned model", "created"),
        [
            (job.id, job.status, _step(job), job.model, job.fine_tuned_model or "–", _time(job.created_at))
            for job in jobs
        ],
    )


@commands.command("show")
def show(job_id: str, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Show one job: its state, settings and newest events."""
    client = connect(data_dir)
    job = client.fine_tuning.jobs.retrieve(job_id)
    if as_json:
        typer.echo(json.dumps(job.to_dict()))
        return
    for name, value in _facts(job).items():
        typer.echo(f"{name:<16} {value}")
    for event in reversed(client.fine_tuning.jobs.list_events(job_id, limit=10).data):
        typer.echo(f"{_time(event.created_at)}  {event.message}")


@commands.command("cancel")
def cancel(job_id: str, data_dir: StackFolder = None) -> None:
    """End a job. A running one stops at its next step; its checkpoints stay."""
    jobs = connect(data_dir).fine_tuning.jobs
    jobs.cancel(job_id)
    typer.echo(_becomes(jobs.retrieve(job_id), "cancelled", "will be cancelled at its next step"))


@commands.command("pause")
def pause(job_id: str, data_dir: StackFolder = None) -> None:
    """Set a job aside. A running one stops at its next step and saves a checkpoint, which is a model too."""
    jobs = connect(data_dir).fine_tuning.jobs
    jobs.pause(job_id)
    typer.echo(_becomes(jobs.retrieve(job_id), "paused", "will be paused with a checkpoint of its next step"))


@commands.command("resume")
def resume(job_id: str, data_dir: StackFolder = None) -> None:
    """Let a paused job go on from its newest checkpoint."""
    job = connect(data_dir).fine_tuning.jobs.resume(job_id)
    typer.echo(f"{job.id}: {job.status}")


def _becomes(job: "FineTuningJob", status: str, else_: str) -> str:
    return f"{job.id}: {status if job.status == status else else_}"


def _facts(job: "FineTuningJob") -> dict[str, Any]:
    # Of a job that the server cannot read there is none, and the error says why.
    method: Any = job.to_dict()["method"] or {}
    parts = method.get(method.get("type"), {})
    facts = {
        "job": job.id,
        "status": job.status,
        "step": _step(job),
        "GPU time": _cost(job),
        "model": job.model,
        "tuned model": job.fine_tuned_model or "–",
        "training file": job.training_file or "–",
        "validation file": job.validation_file or "–",
        "created": _time(job.created_at),
        "finished": _time(job.finished_at) if job.finished_at else "–",
        "method": method.get("type", "–"),
        **({"grader": json.dumps(parts["grader"])} if "grader" in parts else {}),
        **({"integrations": _integrations(job)} if job.integrations else {}),
        "hyperparameters": "  ".join(f"{k}={v}" for k, v in parts.get("hyperparameters", {}).items()),
    }
    return facts | ({"error": job.error.message} if job.error else {})


def _integrations(job: "FineTuningJob") -> str:
    runs: Any = job.to_dict()["integrations"]
    return ", ".join(f"{each['type']} {each['wandb']['project']}/{each['wandb']['run_id']}" for each in runs)


def _step(job: "FineTuningJob") -> str:
    progress: Any = (job.model_extra or {}).get("progress")
    return f"{progress['step']}/{progress['total_steps']}" if progress else "–"


def _cost(job: "FineTuningJob") -> str:
    """What a job used, and may use in all."""
    progress: Any = (job.model_extra or {}).get("progress") or {}
    estimated = progress.get("estimated_gpu_seconds")
    expected = (
        "no estimate: no job like it has succeeded yet" if estimated is None else f"about {estimated:.0f} s in all"
    )
    return f"{progress.get('gpu_seconds', 0):.0f} s used, {expected}"


def _time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
