"""``parse_grader``, the way in for what a user sent: it takes every shape that clients send and names what is wrong.

The definitions it makes are in ``service.graders.kinds`` and ``service.graders.multi``.
"""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from service.contracts.strict_json import kind
from service.contracts.wording import reason_of
from service.graders.formula import is_variable_name
from service.graders.multi import MAX_GRADERS, Grader, Multi
from service.graders.registry import ALIASES, SINGLE_GRADERS, Single, type_of
from service.graders.template import Template

__all__ = ["MAX_FAULTS", "MAX_REFERENCES", "SUPPORTED", "Grader", "GraderError", "parse_grader"]

MAX_FAULTS = 10
"""Faults of a grader that are told in words."""
MAX_REFERENCES = 100
"""Different values that the templates of a grader may read."""


class GraderError(Exception):
    """A grader that cannot be accepted. ``param`` is the path of the offending field in what was sent."""

    def __init__(self, message: str, param: str, faults: "Sequence[GraderError]" = ()) -> None:
        super().__init__(message)
        self.message, self.param = message, param
        self.faults: Sequence[GraderError] = faults or (self,)
        """Each mistake by itself."""

    @classmethod
    def of(cls, errors: "Sequence[GraderError]") -> "GraderError":
        """One error that tells the faults of all ``errors``, and names the first one's field."""
        faults = [fault for error in errors for fault in error.faults]
        if len(faults) == 1:
            return faults[0]
        told = [f"{each.message} ({each.param})" for each in faults[:MAX_FAULTS]]
        more = [f"And {len(faults) - MAX_FAULTS} more."] if len(faults) > MAX_FAULTS else []
        message = " ".join([f"This grader has {len(faults)} faults.", *told, *more])
        return cls(message, faults[0].param, faults)


SUPPORTED = (*SINGLE_GRADERS, type_of(Multi))


def parse_grader(raw: Any, path: str) -> Grader:
    """The grader that ``raw``, found at ``path`` of a request, describes.

    Fields that are null count as absent. ``graders`` of a multi grader may be an object (key to grader), a list or one
    grader; of the latter two each grader's key is made of its name. Raises ``GraderError``.
    """
    fields, type_ = _fields_and_type(raw, path)
    grader: Grader
    if type_ != "multi":
        grader = _parse_single(fields, type_, path)
    else:
        grader = _parse_multi(fields, path)
    # Every row of a file is searched for each of them.
    read = {reference for text in grader.templates() for reference in Template.parse(text).paths}
    if len(read) > MAX_REFERENCES:
        raise GraderError(f"The templates read {len(read)} different values; at most {MAX_REFERENCES} may be.", path)
    return grader


def _fields_and_type(raw: Any, path: str) -> tuple[dict[str, Any], str]:
    if not isinstance(raw, dict):
        raise GraderError(f"Invalid type for '{path}': expected a grader object, but got {kind(raw)}.", path)
    fields = {key: value for key, value in raw.items() if value is not None}
    supported = f"Supported grader types: {', '.join(SUPPORTED)}."
    type_ = fields.get("type")
    if type_ is None:
        raise GraderError(f"Missing required field 'type'. {supported}", f"{path}.type")
    if isinstance(type_, str):
        type_ = ALIASES.get(type_, type_)
    if type_ not in SUPPORTED:
        raise GraderError(f"Unknown grader type {_shown(type_)}. {supported}", f"{path}.type")
    return fields | {"type": type_}, type_


def _parse_single(fields: dict[str, Any], type_: str, path: str) -> Single:
    kind_of_grader = SINGLE_GRADERS[type_]
    unsupported = kind_of_grader.unsupported(fields)
    if unsupported is not None:
        raise GraderError(unsupported.message, f"{path}.{unsupported.field}")
    grader = _validate(kind_of_grader, fields, path)
    fault = grader.fault()
    if fault is not None:
        raise GraderError(fault.message, f"{path}.{fault.field}")
    return grader


def _parse_multi(fields: dict[str, Any], path: str) -> Multi:
    errors: list[GraderError] = []
    graders: dict[str, Single] = {}
    try:
        members = _members(fields.get("graders"), f"{path}.graders")
    except GraderError as error:
        members = {}
        errors.append(error)
    for key, (raw, where) in members.items():
        try:
            graders[key] = _parse_member(raw, where)
        except GraderError as error:
            errors.append(error)
    if not errors:
        return _validate(Multi, fields | {"graders": graders}, path)
    try:
        # Without all of its graders a formula cannot be judged; what else is wrong can be told.
        _validate(Multi, fields | {"graders": {}}, path)
    except GraderError as error:
        errors += [each for each in error.faults if each.param != f"{path}.graders"]
    raise GraderError.of(errors)


def _members(raw: Any, path: str) -> dict[str, tuple[Any, str]]:
    """What is to become each grader of a multi grader, and its path, by key."""
    if raw is None:
        raise GraderError("Missing required field 'graders': an object that gives each grader a name.", path)
    if isinstance(raw, dict) and not isinstance(raw.get("type"), str):
        # Keys name the graders of this shape, so a grader in it may go without a name of its own.
        named = {key: (_with_name(each, key), f"{path}.{key}") for key, each in raw.items()}
    elif isinstance(raw, dict):
        named = _keyed_by_name([raw], [path])
    elif isinstance(raw, list):
        named = _keyed_by_name(raw, [f"{path}[{index}]" for index in range(len(raw))])
    else:
        raise GraderError(
            f"Invalid type for '{path}': expected an object that gives each grader a name, but got {kind(raw)}.", path
        )
    if not 1 <= len(named) <= MAX_GRADERS:
        raise GraderError(f"A multi grader takes 1 to {MAX_GRADERS} graders, but got {len(named)}.", path)
    return named


def _parse_member(raw: Any, path: str) -> Single:
    fields, type_ = _fields_and_type(raw, path)
    if type_ == "multi":
        raise GraderError("A multi grader cannot contain another multi grader.", f"{path}.type")
    return _parse_single(fields, type_, path)


def _with_name(raw: Any, name: str) -> Any:
    return raw | {"name": name} if isinstance(raw, dict) and raw.get("name") is None else raw


def _keyed_by_name(graders: list[Any], paths: list[str]) -> dict[str, tuple[Any, str]]:
    named: dict[str, tuple[Any, str]] = {}
    for raw, path in zip(graders, paths, strict=True):
        if not isinstance(raw, dict):
            raise GraderError(f"Invalid type for '{path}': expected a grader object, but got {kind(raw)}.", path)
        name = raw.get("name")
        key = _slug(name) if isinstance(name, str) else ""
        if not key:
            raise GraderError("This grader needs a 'name' that the formula can use.", f"{path}.name")
        if key in named:
            raise GraderError(f"Two graders are called '{key}' in the formula; give each its own name.", f"{path}.name")
        named[key] = (raw, path)
    return named


def _slug(name: str) -> str:
    """The key of a grader called ``name``: the name itself if a formula can use it, else ``like_this``."""
    if is_variable_name(name):
        return name
    slug = re.sub(r"\W+", "_", name).strip("_").lower()
    return f"_{slug}" if slug and not is_variable_name(slug) else slug


Model = TypeVar("Model", bound=BaseModel)


def _validate(model: type[Model], fields: dict[str, Any], path: str) -> Model:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        faults: dict[str, GraderError] = {}
        for each in error.errors(include_url=False):
            # Pydantic marks an error about a key, rather than the value under it, with a last step of its own.
            steps = [step for step in each["loc"] if step != "[key]"]
            param = path + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
            faults.setdefault(param, GraderError(_describe(each, model, param), param))
        raise GraderError.of(list(faults.values())) from None


def _describe(error: ErrorDetails, model: type[BaseModel], param: str) -> str:
    last = next((step for step in reversed(error["loc"]) if step != "[key]"), "grader")
    match error["type"]:
        case "missing":
            return f"Missing required field '{last}'."
        case "extra_forbidden":
            known = f" Fields of this grader: {', '.join(model.model_fields)}." if len(error["loc"]) == 1 else ""
            return f"Unknown field '{last}'.{known}"
        case "literal_error":
            return f"Invalid value for '{last}': {_shown(error['input'])}. Allowed: {error['ctx']['expected']}."
        case "string_type":
            return f"Invalid type for '{param}': expected a string, but got {kind(error['input'])}."
        case "value_error":
            return f"Invalid '{last}': {str(error['ctx']['error']).rstrip('.')}."
        case _:
            return f"Invalid value for '{param}': {reason_of(error)}."


def _shown(value: Any) -> str:
    return f"'{value[:80]}'" if isinstance(value, str) else kind(value)
