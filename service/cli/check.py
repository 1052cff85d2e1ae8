"""``troll check``: what the service would say of data and grader, without a service."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from service.cli.connection import AsJSON
from service.cli.failure import CommandError, ExitCode
from service.cli.submission import Loader
from service.core.errors import DomainError, invalid
from service.embedded import jail
from service.graders.schemas import GraderError, parse_grader
from service.jobs import check as checking
from service.jobs.examination import Findings, Question
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from service.jobs.methods.registry import METHODS
from service.jobs.methods.reinforcement import Reinforcement
from service.submission.request import AskedMethod, inheriting, parse_method, question_of

File = typer.Option(exists=True, dir_okay=False, readable=True)


def _served(name: str) -> str:
    if name not in METHODS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(map(repr, METHODS))}.")
    return name


def check(
    training: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Training rows, JSONL.")],
    validation: Annotated[Path | None, File] = None,
    method: Annotated[
        str | None,
        typer.Option(
            parser=_served,
            metavar=f"[{'|'.join(METHODS)}]",
            help="What the rows are for. Without it: what the first row looks like.",
        ),
    ] = None,
    job: Annotated[
        Path | None,
        typer.Option(
            "--grader",
            "--job",
            exists=True,
            dir_okay=False,
            readable=True,
            help="A grader, or a job's file with its method, as YAML or JSON.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, readable=True, help="Folder of the base model, to count tokens."),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Check the files of a job as the service would: all bad lines at once, and fields that the grader misses.

    Where the extra 'worker' is installed, the grader is tried on the first rows, code in a jail or as TROLL_GRADERS
    says, and with --model rows are counted in tokens, told to the chat template as the job's file says.
    """
    asked = _read(job) if job else None
    kind = _kind(asked, method) or checking.method_of(training)
    grader = asked.grader if asked else None
    findings = checking.check(training, validation, grader, method=kind)
    if findings.usable and (asked or model):
        files = {"training_file": training} | ({"validation_file": validation} if validation else {})
        examined = _examine(_question(asked, kind, model, files))
        findings.errors += [f"{param}: {message}" for param, message in examined.problems.items()]
        findings.warnings += examined.notes + examined.warnings
    if as_json:
        told = {"method": kind, "usable": findings.usable, "errors": findings.errors, "warnings": findings.warnings}
        typer.echo(json.dumps(told))
        raise typer.Exit(ExitCode.DONE if findings.usable else ExitCode.FAILED)
    for warning in findings.warnings:
        typer.secho(f"Warning: {warning}", fg="yellow", err=True)
    if not findings.usable:
        raise CommandError("\n".join(findings.errors))
    typer.echo(f"The files can be trained on ({kind}).")


def _kind(asked: AskedMethod | None, given: str | None) -> str | None:
    if asked is None:
        return given
    kind = asked.type
    if given not in (None, kind):
        why = "a grader, or a job with one" if asked.grader else f"a {kind} job"
        raise CommandError(f"--method is {given}, and --job or --grader names {why}: leave one of them out.")
    return kind


def _question(asked: AskedMethod | None, kind: str, model: Path | None, files: dict[str, Path]) -> Question:
    if asked is None:
        asked = AskedMethod(METHODS[kind], METHODS[kind].asked())
    if model is not None:
        try:
            asked = inheriting(asked, model)
        except DomainError as error:
            raise CommandError(error.message) from error
    return question_of(asked, model, files, files_checked=True)


def _examine(question: Question) -> Findings:
    """What a worker would find. It is a process of its own, for the worker's libraries are not the command line's."""
    command = [sys.executable, "-m", "workers.control.examination"]
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
        return Findings(notes=[f"Tokens were not counted, and a grader was not tried: {reason}"])
    return Findings.model_validate_json(done.stdout)


def _read(path: Path) -> AskedMethod:
    """What the file asks for, of which all but the method is left aside. Raises ``CommandError``."""
    try:
        raw = Loader(path.read_text()).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is not valid YAML: {error}") from error
    try:
        if not isinstance(raw, dict) or not raw.keys() & {"method", "training_file"}:
            return AskedMethod(Reinforcement, Hyperparameters(), parse_grader(raw, "grader"))
        for name in ("method", "hyperparameters"):
            if not isinstance(raw.get(name), dict | None):
                raise invalid(f"Invalid value for '{name}': it must be an object.", name)
        return parse_method(raw.get("method"), raw.get("hyperparameters"), parse_grader)
    except (DomainError, GraderError) as error:
        raise CommandError(f"{path}: {error.message} ({error.param})") from error
