"""The methods of a job on the wire: what is documented of a request, and what is answered.

A request's method is checked by ``service.submission.request``, which takes more shapes than are documented and names
what is wrong with the others; the types made here are for the OpenAPI document alone.
"""

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, create_model

from service.contracts.response_format import ResponseFormat
from service.core.openapi import ShownAs
from service.jobs.methods.definition import MethodDefinition
from service.jobs.methods.registry import METHODS
from service.jobs.methods.registry import Method as Stored
from service.jobs.validation import MAX_SETS, AskedSet


def _requested(name: str, kind: type[MethodDefinition]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for part, info in kind.model_fields.items():
        if part == "hyperparameters":
            fields[part] = (kind.asked | None, None)
        elif part == "response_format":
            fields[part] = (ResponseFormat | None, None)
        elif part == "validation_sets":
            sets: Any = list[AskedSet] if info.is_required() else list[AskedSet] | None
            given = ... if info.is_required() else None
            fields[part] = (sets, Field(given, min_length=1, max_length=MAX_SETS))
        elif part != "type":
            fields[part] = (info.annotation, info)
    parts = create_model(f"Requested{kind.__name__}Parts", __module__=__name__, **fields)
    body: Any = (parts, ...) if kind.needed() else (parts | None, None)
    named: dict[str, Any] = {"type": (Literal[name], ...), name: body}
    return create_model(f"Requested{kind.__name__}", __module__=__name__, **named)


def _shown(name: str, kind: type[MethodDefinition]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        part: (kind.model_fields[part].annotation, kind.model_fields[part]) for part in kind.parts()
    }
    parts = create_model(f"{kind.__name__}Parts", __module__=__name__, **fields)
    named: dict[str, Any] = {"type": (Literal[name], name), name: (parts, ...)}
    return create_model(f"{kind.__name__}Method", __module__=__name__, **named)


def _one_of(types: list[type[BaseModel]]) -> Any:
    return Annotated[reduce(or_, types), Field(discriminator="type")]


Requested = _one_of([_requested(name, kind) for name, kind in METHODS.items()])
Shown = _one_of([_shown(name, kind) for name, kind in METHODS.items()])
RequestedMethod = Annotated[dict[str, Any], ShownAs(Requested)]
Method = Annotated[dict[str, Any], ShownAs(Shown)]


def method_object(method: Stored) -> dict[str, Any]:
    return {"type": method.type, method.type: method.model_dump(mode="json", exclude={"type"})}
