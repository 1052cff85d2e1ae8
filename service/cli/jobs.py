"""``troll submit``, ``troll follow`` and ``troll jobs``: everything here goes over HTTP, by the official client."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from service.cli import following, submission
from service.cli.connection import AsJSON, StackFolder, connect
from service.cli.failure import ExitCode
from service.cli.output import show_table, shown_time

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

PAGE = 100
"""Jobs that are fetched at a time where all are shown."""

commands = typer.Typer(no_args_is_help=True, help="Your organisation's jobs.")


def submit(
    file: Annotated[Path, typer.Argument(help="YAML: model, training_file, validation_file, method, …")],
    then_follow: Annotated[bool, typer.Option("--follow", help="Follow the job until it ends.")] = False,
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Upload a job's files, create it, and print its id."""
    document = submission.read(file)
    client = connect(data_dir)
    job = submission.create(client, document)
    typer.echo(json.dumps(job.to_dict()) if as_json else job.id)
    typer.echo(f"GPU time: {_cost(job)}", err=True)
    if then_follow:
        follow(job.id, data_dir, as_json)


def follow(job_id: str, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Watch a job until it ends. Exit code 0 if it succeeded, 3 if it failed, 4 if it was cancelled.

    Ctrl-C leaves the job running. With --json each event is a line on standard output.
    """
    client, console = connect(data_dir), Console(stderr=True)
    try:
        job = _follow_as_json(client, job_id) if as_json else following.show(client, job_id, console)
    except KeyboardInterrupt:
        typer.echo(f"\n{job_id} goes on. Watch it again: troll follow {job_id}", err=True)
        typer.echo(f"End it: troll jobs cancel {job_id}", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if job.status == "succeeded":
        if job.fine_tuned_model is not None:
            typer.echo(f"Get the weights: troll pull {job.fine_tuned_model}", err=True)
        return
    reason = f": {job.error.message}" if job.error else ""
    typer.secho(f"{job_id} {job.status}{reason}", err=True, fg="red")
    raise typer.Exit(ExitCode.JOB_FAILED if job.status == "failed" else ExitCode.JOB_CANCELLED)


def _follow_as_json(client: "OpenAI", job_id: str) -> "FineTuningJob":
    for event in following.events(client, job_id):
        typer.echo(json.dumps(event))
        sys.stdout.flush()
    return client.fine_tuning.jobs.retrieve(job_id)


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
            (job.id, job.status, _step(job), job.model, job.fine_tuned_model or "–", shown_time(job.created_at))
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
        typer.echo(f"{shown_time(event.created_at)}  {event.message}")


@commands.command("events")
def events(
    job_id: str,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 100,
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Show a job's newest events, oldest first; 'troll follow' shows those to come."""
    found = connect(data_dir).fine_tuning.jobs.list_events(job_id, limit=limit).data[::-1]
    if as_json:
        typer.echo(json.dumps([event.to_dict() for event in found]))
        return
    show_table(
        ("time", "level", "message"), [(shown_time(each.created_at), each.level, each.message) for each in found]
    )


@commands.command("checkpoints")
def checkpoints(job_id: str, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Show the checkpoints of a job, newest first. Each is a model."""
    found = connect(data_dir).fine_tuning.jobs.checkpoints.list(job_id, limit=1000).data
    if as_json:
        typer.echo(json.dumps([checkpoint.to_dict() for checkpoint in found]))
        return
    rows = []
    for each in found:
        told = {name: value for name, value in each.metrics.to_dict().items() if isinstance(value, int | float)}
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in told.items() if name != "step")
        rows.append((str(each.step_number), each.fine_tuned_model_checkpoint, numbers, shown_time(each.created_at)))
    show_table(("step", "model", "metrics", "created"), rows)


@commands.command("cancel")
def cancel(job_id: str, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """End a job. A running one stops at its next step; its checkpoints stay."""
    jobs = connect(data_dir).fine_tuning.jobs
    jobs.cancel(job_id)
    _tell(jobs.retrieve(job_id), "cancelled", "will be cancelled at its next step", as_json)


@commands.command("pause")
def pause(job_id: str, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Set a job aside. A running one stops at its next step and saves a checkpoint, which is a model too."""
    jobs = connect(data_dir).fine_tuning.jobs
    jobs.pause(job_id)
    _tell(jobs.retrieve(job_id), "paused", "will be paused with a checkpoint of its next step", as_json)


@commands.command("resume")
def resume(job_id: str, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Let a paused job go on from its newest checkpoint."""
    job = connect(data_dir).fine_tuning.jobs.resume(job_id)
    _tell(job, job.status, "", as_json)


def _tell(job: "FineTuningJob", status: str, else_: str, as_json: bool) -> None:
    typer.echo(json.dumps(job.to_dict()) if as_json else f"{job.id}: {status if job.status == status else else_}")


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
        "created": shown_time(job.created_at),
        "finished": shown_time(job.finished_at) if job.finished_at else "–",
        "method": method.get("type", "–"),
        **({"grader": json.dumps(parts["grader"])} if "grader" in parts else {}),
        **({"integrations": _integrations(job)} if job.integrations else {}),
        "hyperparameters": "  ".join(f"{k}={v}" for k, v in parts.get("hyperparameters", {}).items()),
    }
    return facts | ({"error": job.error.message} if job.error else {})


def _integrations(job: "FineTuningJob") -> str:
    runs: Any = job.to_dict()["integrations"]
    return ", ".join(f"{each['type']} {_run(each[each['type']])}" for each in runs)


def _run(told: dict[str, Any]) -> str:
    return f"{told['project']}/{told['run_id']}" if "run_id" in told else str(told["experiment"])


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
