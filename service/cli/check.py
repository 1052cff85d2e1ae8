"""``troll check``: what the service would say of data and grader, without a service."""

import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import yaml

from service.cli.failure import CommandError
from service.embedded import jail
from service.files import check as checking
from service.graders.schemas import Grader, GraderError, parse_grader
from service.jobs.examination import Answer, Question


class Method(StrEnum):
    SUPERVISED = "supervised"
    REINFORCEMENT = "reinforcement"


File = typer.Option(exists=True, dir_okay=False, readable=True)


def check(
    training: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Training rows, JSONL.")],
    validation: Annotated[Path | None, File] = None,
    method: Annotated[
        Method | None, typer.Option(help="What the rows are for. Without it: what the first row looks like.")
    ] = None,
    grader: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, readable=True, help="A grader, or a job's file, as YAML or JSON."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, readable=True, help="Folder of the base model, to count tokens."),
    ] = None,
) -> None:
    """Check the files of a job as the service would: all bad lines at once, and fields that the grader misses.

    Where the extra 'worker' is installed, the grader is tried on the first rows, code in a jail or as TROLL_GRADERS
    says, and with --model rows are counted in tokens.
    """
    if grader and method is Method.SUPERVISED:
        raise CommandError("Supervised jobs have no grader: leave out --grader, or choose --method reinforcement.")
    kind = method.value if method else "reinforcement" if grader else checking.method_of(training)
    definition = read_grader(grader) if grader else None
    findings = checking.check(training, validation, definition, method=kind)
    if findings.usable and (definition or model):
        files = {"training_file": training} | ({"validation_file": validation} if validation else {})
        examined = _examine(Question(method=kind, model=model, files=files, grader=definition))
        findings.errors += [f"{param}: {message}" for param, message in examined.problems.items()]
        findings.warnings += examined.notes
    for warning in findings.warnings:
        typer.secho(f"Warning: {warning}", fg="yellow", err=True)
    if not findings.usable:
        raise CommandError("\n".join(findings.errors))
    typer.echo(f"The files can be trained on ({kind}).")


def _examine(question: Question) -> Answer:
    """What a worker would find. It is a process of its own, for the worker's libraries are not the command line's."""
    command = [sys.executable, "-m", "workers.examination"]
    try:
        settings = jail.wanted(jail.Jail.AUTO).settings
    except ValueError as error:
        raise CommandError(str(error)) from error
    done = subprocess.run(
        command,
        input=question.model_dump_json(),
        env=os.environ | jail.variables(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Answer(notes=[f"Tokens were not counted, and a grader was not tried: {reason}"])
    return Answer.model_validate_json(done.stdout)


def read_grader(path: Path) -> Grader:
    """The grader in ``path``, which may be a whole job's file. Raises ``CommandError``."""
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is not valid YAML: {error}") from error
    where = "grader"
    if isinstance(raw, dict) and isinstance(raw.get("method"), dict):
        raw, where = (raw["method"].get("reinforcement") or {}).get("grader"), "method.reinforcement.grader"
    try:
        return parse_grader(raw, where)
    except GraderError as error:
        raise CommandError(f"{path}: {error.message} ({error.param})") from error
