"""``troll graders``: whether the service takes a grader, and what it says of an answer."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from service.cli.connection import AsJSON, StackFolder, connect
from service.cli.failure import CommandError
from service.cli.output import parsed_json, show_object
from service.cli.submission import Loader

commands = typer.Typer(no_args_is_help=True, help="Graders, tried by the service.")

File = Annotated[
    Path,
    typer.Argument(exists=True, dir_okay=False, readable=True, help="A grader, or a job's file, as YAML or JSON."),
]


@commands.command("validate")
def validate(file: File, data_dir: StackFolder = None, as_json: AsJSON = False) -> None:
    """Ask the service whether it would take a grader, and show it as it was read."""
    found = connect(data_dir).fine_tuning.alpha.graders.validate(grader=_grader(file))
    show_object(found.to_dict(), as_json)


@commands.command("run")
def run(
    file: File,
    answer: Annotated[str, typer.Argument(help="The model's answer.")],
    item: Annotated[str, typer.Option(help="The row, as a JSON object.")] = "{}",
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Grade one answer as a job would."""
    graders = connect(data_dir).fine_tuning.alpha.graders
    graded = graders.run(grader=_grader(file), model_sample=answer, item=parsed_json(item, "--item"))
    show_object(graded.to_dict(), as_json)


def _grader(path: Path) -> Any:
    try:
        raw = Loader(path.read_text()).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is not valid YAML: {error}") from error
    if isinstance(raw, dict) and isinstance(raw.get("method"), dict):
        raw = (raw["method"].get("reinforcement") or {}).get("grader")
    if not isinstance(raw, dict):
        raise CommandError(f"{path} holds no grader.")
    return raw
