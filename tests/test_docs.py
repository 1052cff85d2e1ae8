"""README and docs say what the code does: every table of settings is held against the code."""

import re
import typing
from pathlib import Path
from typing import Any

import annotated_types
import pytest
import typer
import yaml
from pydantic.fields import FieldInfo

from service.cli import app
from service.files.check import check
from service.jobs.spec import AUTO, Hyperparameters, SupervisedHyperparameters
from service.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def table(text: str, first_column: str) -> dict[str, list[str]]:
    """The other cells of each row, by the names in backticks in its first cell."""
    body = text.split(f"| {first_column} |", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]
    return {name: row[1:] for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


HYPERPARAMETERS = table(README, "hyperparameter")
SUPERVISED = table(README, "supervised hyperparameter")
AS_BELOW = re.findall(r"`(\w+)`", README.split("as in the table further below:")[1].split("\n\n")[0])


def limits(info: FieldInfo) -> tuple[list[Any], list[float]]:
    """The words a hyperparameter may be, and the bounds of its numbers."""
    words: list[Any] = []
    bounds: list[float] = []

    def visit(annotation: Any) -> None:
        if typing.get_origin(annotation) is typing.Literal:
            words.extend(typing.get_args(annotation))
        for part in typing.get_args(annotation) if typing.get_origin(annotation) is not typing.Literal else ():
            for one in getattr(part, "metadata", [part]):
                bounds.extend(
                    value
                    for kind in (annotated_types.Ge, annotated_types.Gt, annotated_types.Le, annotated_types.Lt)
                    if isinstance(one, kind)
                    for value in [getattr(one, kind.__name__.lower())]
                )
            visit(part)

    visit(typing.Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation)
    return [word for word in words if word != AUTO], bounds


def test_the_readme_lists_every_hyperparameter() -> None:
    assert HYPERPARAMETERS.keys() == Hyperparameters.model_fields.keys()
    assert SUPERVISED.keys() | set(AS_BELOW) == SupervisedHyperparameters.model_fields.keys()


@pytest.mark.parametrize("name", AS_BELOW)
def test_what_supervised_jobs_share_is_the_same(name: str) -> None:
    mine, theirs = SupervisedHyperparameters.model_fields[name], Hyperparameters.model_fields[name]
    assert (mine.default, mine.annotation, mine.metadata) == (theirs.default, theirs.annotation, theirs.metadata)


@pytest.mark.parametrize(
    ("row", "info"),
    [(HYPERPARAMETERS[name], info) for name, info in Hyperparameters.model_fields.items() if name in HYPERPARAMETERS]
    + [(SUPERVISED[name], info) for name, info in SupervisedHyperparameters.model_fields.items() if name in SUPERVISED],
)
def test_defaults_and_ranges_in_the_readme_are_those_of_the_code(row: list[str], info: FieldInfo) -> None:
    default, allowed, _ = row
    real = info.default
    if real == AUTO:
        assert default.startswith("auto")
    elif isinstance(real, str):
        assert default == f"`{real}`"
    elif isinstance(real, dict):
        assert default == f"`{real}`"
        return
    else:
        assert float(default) == real
    words, bounds = limits(info)
    if words:
        assert re.findall(r"`([^`]+)`", allowed) == words
    else:
        assert len(bounds) == 2
        assert set(bounds) <= {float(number) for number in re.findall(r"\d[\d.e-]*", allowed)}


def test_operations_lists_every_setting_with_its_default() -> None:
    listed = table(OPERATIONS, "variable")
    for field, info in Settings.model_fields.items():
        name = field.upper() if f"`{field.upper()}`" in OPERATIONS else f"TROLL_{field.upper()}"
        assert name in listed, f"docs/operations.md does not list {name}"
        default = listed[name][0]
        if info.is_required():
            assert default == "required", name
        elif isinstance(info.default, str):
            assert default == f"`{info.default}`", name
        elif isinstance(info.default, int | float):
            assert float(default) == info.default, name
        elif info.default is not None:
            assert (default, list(info.default)) == ("none", []), name


def test_the_readme_names_every_command() -> None:
    listed = set(table(README, "command"))
    group = typer.main.get_command(app)
    for name in group.commands:  # type: ignore[attr-defined]
        assert any(entry.startswith(f"troll {name}") for entry in listed), name


def test_the_readmes_commands_are_make_targets() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"make (\w+)", README)) <= set(targets)


def test_links_lead_somewhere() -> None:
    for text, base in ((README, ROOT), (OPERATIONS, ROOT / "docs")):
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (base / target).exists(), target


def test_the_example_is_a_valid_job() -> None:
    body = yaml.safe_load((ROOT / "examples" / "additions.yaml").read_text())
    Hyperparameters.model_validate(body["method"]["reinforcement"]["hyperparameters"])
    for name in ("training_file", "validation_file"):
        assert (ROOT / "examples" / body[name]).exists()


def test_the_supervised_example_is_a_valid_job() -> None:
    body = yaml.safe_load((ROOT / "examples" / "additions-supervised.yaml").read_text())
    SupervisedHyperparameters.model_validate(body["method"]["supervised"]["hyperparameters"])
    paths = [ROOT / "examples" / body[name] for name in ("training_file", "validation_file")]
    assert check(*paths, method="supervised").errors == []
