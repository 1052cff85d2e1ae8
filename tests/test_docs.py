"""README and docs say what the code does: every table of settings is held against the code."""

import ast
import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import annotated_types
import pytest
import typer
import yaml
from pydantic.fields import FieldInfo

from service.app import create_app
from service.cli import app
from service.graders.multi import Multi
from service.graders.registry import SINGLE_GRADERS
from service.graders.settings import GraderSettings, JailLimits
from service.graders.trial import RunErrors
from service.inference.requests import ChatRequest, CompletionRequest
from service.inference.responses.requests import ResponseRequest
from service.jobs.check import check
from service.jobs.hyperparameters.option import AUTO
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from service.jobs.hyperparameters.supervised import SupervisedHyperparameters
from service.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()
GRADERS = (ROOT / "docs" / "graders.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
SECURITY = (ROOT / "SECURITY.md").read_text()


def rows_of(text: str, first_column: str) -> list[list[str]]:
    """The cells of each row of the table whose first column is called so."""
    body = text.split(f"| {first_column} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]


def names(cell: str) -> list[str]:
    """What is in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def table(text: str, first_column: str) -> dict[str, list[str]]:
    """The other cells of each row, by the names in backticks in its first cell."""
    return {name: row[1:] for row in rows_of(text, first_column) for name in names(row[0])}


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
    elif real is None:
        assert (default, allowed.endswith("`null`")) == ("none", True)
        return
    elif isinstance(real, bool):
        assert (default, allowed) == (f"`{str(real).lower()}`", "`true`, `false`")
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
        elif isinstance(info.default, bool):
            assert default == str(info.default).lower(), name
        elif isinstance(info.default, int | float):
            assert float(default) == info.default, name
        elif info.default is not None:
            assert (default, list(info.default)) == ("none", []), name


def test_no_target_is_defined_twice() -> None:
    defined = re.findall(r"^([\w./-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(defined) == len(set(defined))


def test_the_api_lists_every_operation_and_no_other() -> None:
    listed = [name for row in rows_of(API, "Client") for name in names(row[1])]
    served = [
        f"{method.upper()} {path.removeprefix('/v1')}"
        for path, methods in create_app().openapi()["paths"].items()
        for method in methods
        if path.startswith("/v1/")
    ]
    assert sorted(listed) == sorted(served)


CODE_POSITIONS = {
    "DomainError": 1,
    "error_answer": 1,
    "invalid": 2,
    "PreparationError": 2,
    "RequestRefusedError": 2,
    "Failed": None,
    "_another": 0,
    "_fail_all": 0,
    "__init__": 1,
}
"""Where calls that make an error of an answer hold its code, unless it is named ``code``."""
NOT_TOLD = {"client_closed_request"}
"""To a client that has gone."""


def codes_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        holders: list[ast.AST] = []
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if called == "not_found" and isinstance(node.args[0], ast.Constant):
                yield f"{node.args[0].value!s}_not_found".replace(" ", "_")
            if called in CODE_POSITIONS:
                position = CODE_POSITIONS[called]
                holders += [each.value for each in node.keywords if each.arg == "code"]
                holders += node.args[position : position + 1] if position is not None else []
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("code", "codes"):
            holders.append(node.value)
        elif isinstance(node, ast.arguments):
            pairs = zip(reversed(node.args), reversed(node.defaults), strict=False)
            holders += [default for argument, default in pairs if argument.arg == "code"]
        for holder in holders:
            yield from texts_of(holder)


def texts_of(node: ast.AST) -> Iterator[str]:
    """The texts that an expression may be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for part in (node.body, node.orelse) if isinstance(node, ast.IfExp) else getattr(node, "values", []):
        yield from texts_of(part) if not isinstance(node, ast.JoinedStr) else ()


def test_the_api_lists_every_code_of_an_error_and_no_other() -> None:
    files = [*(ROOT / "service").rglob("*.py"), *(ROOT / "workers" / "serving").rglob("*.py")]
    raised = {code for file in files for code in codes_in(ast.parse(file.read_text()))}
    # Made of the field that is at fault.
    raised |= {"invalid_training_file", "invalid_validation_file"}
    listed = {code for row in rows_of(API, "Status") for code in names(row[1]) if code != "Retry-After"}
    assert raised - NOT_TOLD == listed


def test_statuses_of_the_api_are_those_of_its_errors() -> None:
    listed = {int(row[0]) for row in rows_of(API, "Status")}
    assert listed == {400, 401, 403, 404, 405, 408, 413, 416, 429, 500, 503, 504, 507}


@pytest.mark.parametrize(
    ("column", "requests"),
    [("Asked for", [ChatRequest, CompletionRequest]), ("Asked of `/responses`", [ResponseRequest])],
)
def test_what_may_be_asked_of_models_is_listed(column: str, requests: list[Any]) -> None:
    listed = {name.split(".")[0].split(":")[0] for row in rows_of(API, column) for name in names(row[0])}
    taken = {name for each in requests for name in each.model_fields}
    refused = {"functions", "web_search_options"}
    assert listed - refused <= taken
    honoured = {name for each in requests for name, info in each.model_fields.items() if info.annotation is not Any}
    assert honoured - listed - {"model", "messages", "input", "prompt", "modalities"} == set()


def test_graders_lists_every_field_of_every_type() -> None:
    listed = {names(row[0])[0]: (names(row[1]), names(row[2])) for row in rows_of(GRADERS, "grader")}
    types: dict[str, Any] = {**SINGLE_GRADERS, "multi": Multi}
    assert listed.keys() == types.keys() == table(GRADERS, "type").keys()
    for name, type_ in types.items():
        fields = {field: info.is_required() for field, info in type_.model_fields.items() if field != "type"}
        needed, optional = listed[name]
        assert dict.fromkeys(needed, True) | dict.fromkeys(optional, False) == fields, name


def test_graders_lists_every_flag() -> None:
    flags = {name for name, info in RunErrors.model_fields.items() if info.annotation is bool}
    # Of the hosted service, and never set here.
    assert table(GRADERS, "flag").keys() == flags - {"truncated_observation_error", "unresponsive_reward_error"}


def test_graders_lists_every_setting_with_its_default() -> None:
    listed = table(GRADERS, "field")
    settings = {field.name: field for field in dataclasses.fields(GraderSettings)}
    limits = {f"jail_limits.{field.name}": field for field in dataclasses.fields(JailLimits)}
    known = {name: field for name, field in settings.items() if name != "jail_limits"} | limits
    assert listed.keys() == known.keys()
    for name, field in known.items():
        # What stands behind a default says where it is another.
        default = re.split(r"[;,] ", listed[name][0])[0].strip("`")
        if isinstance(field.default, int | float):
            assert float(default) == field.default, name
        else:
            assert default == (field.default or "none"), name


def test_the_readme_names_every_command() -> None:
    listed = set(table(README, "command"))
    group = typer.main.get_command(app)
    for name in group.commands:  # type: ignore[attr-defined]
        assert any(entry.startswith(f"troll {name}") for entry in listed), name


def test_the_readmes_commands_are_make_targets() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"\bmake ([a-z]\S*?)[:`\s]", README)
    named += re.findall(r"`make ([a-z][\w-]*)`", CONTRIBUTING + SECURITY)
    assert set(named) <= set(targets)


def test_links_lead_somewhere() -> None:
    for text in (README, CONTRIBUTING, SECURITY, OPERATIONS, API, GRADERS, ARCHITECTURE):
        base = ROOT if text in (README, CONTRIBUTING, SECURITY) else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (base / target).exists(), target


@pytest.mark.parametrize("text", [CONTRIBUTING, SECURITY], ids=["contributing", "security"])
def test_headings_that_are_linked_to_are_there(text: str) -> None:
    for file, anchor in re.findall(r"\]\((?:docs/)?([\w-]+\.md)#([^)]+)\)", text):
        headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / file).read_text(), flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, anchor


@pytest.mark.parametrize("text", [ARCHITECTURE, CONTRIBUTING], ids=["architecture", "contributing"])
def test_modules_and_folders_that_are_named_are_there(text: str) -> None:
    rooms = "service|workers|troll|migrations|tests|docs|examples|deploy"
    paths = re.findall(rf"(?<![\w/.-])((?:{rooms})/[\w./-]*)", text)
    assert len(paths) > 20
    missing = [path for path in paths if not (ROOT / path.rstrip(".")).exists()]
    assert not missing


@pytest.mark.parametrize("text", [ARCHITECTURE, CONTRIBUTING], ids=["architecture", "contributing"])
def test_names_that_are_said_to_be_in_a_module_are_in_it(text: str) -> None:
    named = re.findall(r"`(\w+)` in `([\w/]+\.py)`", text)
    assert named
    for name, path in named:
        nodes = list(ast.walk(ast.parse((ROOT / path).read_text())))
        made = {target.id for node in nodes for target in targets_of(node)}
        made |= {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        assert name in made, f"{path} has no {name}"


def targets_of(node: ast.AST) -> list[ast.Name]:
    """What a statement gives a value."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target for target in targets if isinstance(target, ast.Name)]


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
