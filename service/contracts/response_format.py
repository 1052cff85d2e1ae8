"""What form answers are held to, of chats and of jobs alike."""

from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator


class JSONSchema(BaseModel):
    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise ValueError("json_schema needs a 'json_schema' with a 'schema'")
        return self

    @property
    def schema_(self) -> dict[str, Any] | None:
        """What answers are held to."""
        if self.type == "text":
            return None
        return {"type": "object"} if self.json_schema is None else self.json_schema.schema_


def known(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """``value`` as it was sent. Raises ``ValueError`` where it is no response format of this version."""
    try:
        ResponseFormat.model_validate(value or {"type": "text"})
    except ValidationError as error:
        raise ValueError("this is not a response format that is known here") from error
    return value


def schema_of(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """What answers are held to by what was sent."""
    return None if value is None else ResponseFormat.model_validate(value).schema_
