"""From a request body to the parts of a job's specification: each error names the field it is about."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.contracts import chat_template
from service.contracts.response_format import ResponseFormat
from service.contracts.wording import reason_of
from service.core.errors import DomainError, invalid
from service.core.http import describe
from service.graders.schemas import MAX_FAULTS, Grader
from service.inference import bounds
from service.jobs import trackers
from service.jobs.examination import Question
from service.jobs.hyperparameters.option import Asked
from service.jobs.integrations import Integration
from service.jobs.methods.registry import METHODS, Method, type_of
from service.jobs.methods.supervised import Supervised
from service.jobs.validation import MAX_SETS, AskedSet


@dataclass(frozen=True)
class AskedMethod:
    """A method as it is asked for: what its ``kind`` has no field for is None."""

    kind: type[Method]
    hyperparameters: Asked[Any]
    grader: Grader | None = None
    response_format: dict[str, Any] | None = None
    """As it was sent."""
    validation_sets: Sequence[AskedSet] = ()

    @property
    def type(self) -> str:
        return type_of(self.kind)


def parse_method(
    method: dict[str, Any] | None,
    legacy_hyperparameters: dict[str, Any] | None,
    read_grader: Callable[[Any, str], Grader],
) -> AskedMethod:
    """What a create request asks for; supervised fine-tuning where it has no ``method``.

    ``legacy_hyperparameters`` are OpenAI's older place for them; those of the method win. What ``method`` holds for
    other types than its own is ignored. ``read_grader`` is given the grader and its path. Raises a 400 whose
    ``param`` is the offending field, and what ``read_grader`` raises.
    """
    method = {"type": type_of(Supervised)} if method is None else method
    name = method.get("type")
    if not isinstance(name, str) or name not in METHODS:
        asked = "It is missing" if name is None else f"'{name}' is not served"
        raise invalid(f"{asked}; method.type is {' or '.join(map(repr, METHODS))}.", "method.type")
    kind, where = METHODS[name], f"method.{name}"
    body = method.get(name)
    if body is None and not kind.needed():
        body = {}
    if not isinstance(body, dict):
        raise invalid(f"Missing required parameter: '{where}'.", where)
    unknown = sorted(body.keys() - set(kind.parts()))
    if unknown:
        raise invalid(f"Unknown parameter: '{where}.{unknown[0]}'.", f"{where}.{unknown[0]}", "unknown_parameter")
    given, prefix = (body.get("hyperparameters"), legacy_hyperparameters), f"{where}.hyperparameters"
    for part in kind.needed():
        if body.get(part) is None:
            raise invalid(f"Missing required parameter: '{where}.{part}'.", f"{where}.{part}")
    grader = None if body.get("grader") is None else read_grader(body["grader"], f"{where}.grader")
    wanted = body.get("response_format")
    if wanted is not None:
        _check_response_format(wanted, f"{where}.response_format")
    sets = _validation_sets(body.get("validation_sets"), f"{where}.validation_sets", read_grader)
    if "grader" in kind.parts() and grader is None and not all(each.grader for each in sets):
        why = "Give the method a grader, or each of its validation sets one."
        raise invalid(f"Missing required parameter: '{where}.grader'. {why}", f"{where}.grader")
    return AskedMethod(kind, _hyperparameters(kind.asked, *given, prefix), grader, wanted, sets)


def question_of(asked: AskedMethod, model: Path | None, files: Mapping[str, Path], *, files_checked: bool) -> Question:
    """What to find out of a job before it is queued. ``asked`` is what ``inheriting`` made of it."""
    wanted = asked.response_format
    return Question(
        method=asked.type,
        model=model,
        files=dict(files),
        grader=asked.grader,
        graders={set_file(asked, n): each.grader for n, each in enumerate(asked.validation_sets) if each.grader},
        chat_template_kwargs=asked.hyperparameters.chat_template_kwargs,
        reasoning_effort=asked.hyperparameters.effort,
        json_schema=None if wanted is None else ResponseFormat.model_validate(wanted).schema_,
        files_checked=files_checked,
    )


def inheriting(asked: AskedMethod, base: Path) -> AskedMethod:
    """What is asked for, and what the base model's template is told besides. Raises a 400."""
    try:
        known = chat_template.remembered(base)
    except chat_template.MalformedTemplateError as error:
        raise invalid(f"The model cannot be used: {error}.", "model", "invalid_model") from error
    if asked.hyperparameters.effort is not None:
        known.pop("reasoning_effort", None)
    told = {"chat_template_kwargs": known | asked.hyperparameters.chat_template_kwargs}
    return replace(asked, hyperparameters=asked.hyperparameters.model_copy(update=told))


def set_file(asked: AskedMethod, number: int) -> str:
    """The field of the request that names the file of a validation set."""
    return f"method.{asked.type}.validation_sets[{number}].file"


def _validation_sets(raw: Any, where: str, read_grader: Callable[[Any, str], Grader]) -> list[AskedSet]:
    """Raises a 400, and what ``read_grader`` raises."""
    if raw is None:
        return []
    if not isinstance(raw, list) or not 1 <= len(raw) <= MAX_SETS:
        raise invalid(f"Invalid value for '{where}': it must be a list of 1 to {MAX_SETS} sets.", where)
    sets = [_validation_set(each, f"{where}[{number}]", read_grader) for number, each in enumerate(raw)]
    for number, each in enumerate(sets):
        if each.name in [earlier.name for earlier in sets[:number]]:
            raise invalid(f"Two validation sets are called '{each.name}'. Rename one.", f"{where}[{number}].name")
    return sets


def _validation_set(raw: Any, where: str, read_grader: Callable[[Any, str], Grader]) -> AskedSet:
    if not isinstance(raw, dict):
        raise invalid(f"Invalid value for '{where}': it must be an object.", where)
    given = {name: value for name, value in raw.items() if value is not None}
    if "grader" in given:
        given["grader"] = read_grader(given["grader"], f"{where}.grader")
    try:
        return AskedSet.model_validate(given)
    except ValidationError as error:
        message, param = describe(error.errors(include_url=False), where)
        raise invalid(message, param) from error


def _check_response_format(wanted: Any, where: str) -> None:
    """Raises a 400 for what chats would refuse as well."""
    try:
        schema = ResponseFormat.model_validate(wanted).schema_
    except ValidationError as error:
        message, param = describe(error.errors(include_url=False), where)
        raise invalid(message, param) from error
    if schema is not None:
        bounds.check(schema, f"{where}.json_schema.schema")


def check_integrations(integrations: list[Integration], organization_id: str, project_id: str) -> None:
    """Raises a 400 when this installation does not serve them."""
    for integration in integrations:
        why = trackers.refusal(integration, organization_id, project_id)
        if why is not None:
            raise invalid(why, "integrations")


def _hyperparameters(kind: type[Asked[Any]], raw: Any, legacy: dict[str, Any] | None, prefix: str) -> Asked[Any]:
    if raw is not None and not isinstance(raw, dict):
        raise invalid(f"Invalid value for '{prefix}': it must be an object.", prefix)
    given = {name: value for name, value in (raw or {}).items() if value is not None}
    older = {name: value for name, value in (legacy or {}).items() if value is not None}
    try:
        asked = kind.model_validate(older | given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]["loc"][0]
        where = prefix if first in given else "hyperparameters"
        raise _hyperparameter_error(error, where, list(kind.model_fields)) from error
    _check_template_values(asked, prefix)
    return asked


def _check_template_values(asked: Asked[Any], prefix: str) -> None:
    where, values = f"{prefix}.chat_template_kwargs", asked.chat_template_kwargs
    wrong = chat_template.fault(values)
    if wrong is not None:
        raise invalid(f"Invalid value for '{where}': {wrong}.", where)
    if asked.effort not in (None, asked.template_values.get("reasoning_effort")):
        raise invalid(
            f"'{prefix}.reasoning_effort' is '{asked.effort}', and 'chat_template_kwargs' names another: give one.",
            where,
        )


def _hyperparameter_error(error: ValidationError, prefix: str, known: list[str]) -> DomainError:
    """All that is wrong with them; the first one's name is the field."""
    by_name: dict[Any, list[Any]] = {}
    for problem in error.errors(include_url=False):
        by_name.setdefault(problem["loc"][0], []).append(problem)
    told = [_hyperparameter_fault(name, problems, prefix) for name, problems in by_name.items()]
    unknown = any(problems[0]["type"] == "extra_forbidden" for problems in by_name.values())
    names = [f"Known ones: {', '.join(known)}."] if unknown else []
    code = "unknown_parameter" if next(iter(by_name.values()))[0]["type"] == "extra_forbidden" else "invalid_value"
    return invalid(" ".join([*told[:MAX_FAULTS], *names]), f"{prefix}.{next(iter(by_name))}", code)


def _hyperparameter_fault(name: Any, problems: list[Any], prefix: str) -> str:
    if problems[0]["type"] == "extra_forbidden":
        return f"Unknown hyperparameter: '{prefix}.{name}'."
    # A field that may also be "auto" reports one problem for each alternative.
    reasons = list(dict.fromkeys(reason_of(problem).removeprefix("Input should be ") for problem in problems))
    first = {"type": "hyperparameter", "loc": [name], "msg": "it should be " + " or ".join(reasons)}
    return describe([first], prefix)[0]
