"""What is wrong with a value, in words that need no knowledge of Python."""

from typing import Any

_KINDS = {
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "string_type": "a string",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
"""What JSON calls what pydantic asks for, by pydantic's types of errors."""


def reason_of(error: Any) -> str:
    """For one of pydantic's errors, without a full stop."""
    kind = _KINDS.get(error["type"])
    return f"Input should be {kind}" if kind else error["msg"].removeprefix("Value error, ").removesuffix(".")
