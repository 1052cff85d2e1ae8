"""The OpenAPI document: what FastAPI derives from the routes, made true where it guesses."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class ShownAs:
    """Shows a field as ``type`` in the OpenAPI document, whatever its own type takes."""

    def __init__(self, type: Any) -> None:
        self._type = type

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(TypeAdapter(self._type).core_schema)


ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string", "examples": ["invalid_request_error"]},
                "param": {"type": ["string", "null"], "description": "The field, with dots into nested ones."},
                "code": {"type": ["string", "null"], "examples": ["invalid_value"]},
            },
        }
    },
}
REQUEST_ID = {
    "description": "Names this request in the server's log.",
    "schema": {"type": "string", "pattern": "^req_"},
}
# FastAPI documents answers to invalid requests that are not given here: they have the envelope like all others.
_GUESSED = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Let ``app`` serve the corrected document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _corrected(
                get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            )
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _corrected(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in _GUESSED:
        schemas.pop(name, None)
    schemas["Error"] = ERROR
    components["headers"] = {"x-request-id": REQUEST_ID}
    for path in document["paths"].values():
        for method, operation in path.items():
            if method == "get":
                operation["responses"].setdefault("304", {"description": "It is what `If-None-Match` names."})
            _correct(operation["responses"])
    return document


def _correct(responses: dict[str, Any]) -> None:
    responses.pop("422", None)
    responses["default"] = {
        "description": "What went wrong.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for response in responses.values():
        response["headers"] = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}
