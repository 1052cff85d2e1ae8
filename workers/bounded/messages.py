"""Messages of OpenAI's API and of dataset rows, as chat templates of open models take them."""

import json
from collections.abc import Sequence
from typing import Any


class UnusableMessageError(Exception):
    """Messages that no template can be given; the message says why."""


def for_template(messages: Sequence[dict[str, Any]], template: str | None) -> list[dict[str, Any]]:
    """Content as one string, arguments of tool calls as values, and roles that the template knows.

    Raises ``UnusableMessageError``, also for calls that the template would leave out.
    """
    calling = next((number for number, message in enumerate(messages) if message.get("tool_calls")), None)
    if calling is not None and "tool_calls" not in str(template):
        lacking = "has no chat template" if template is None else "has a chat template that writes no tool calls"
        raise UnusableMessageError(
            f"messages[{calling}] calls tools, and the model {lacking}: choose a model that was made for them, or "
            "leave such conversations out"
        )
    made = [_plain(message) for message in messages]
    if "developer" not in str(template):
        # OpenAI's name for what open models' templates call the system message.
        made = [message | {"role": message["role"].replace("developer", "system")} for message in made]
    return made


def joined(messages: Sequence[dict[str, Any]]) -> str:
    """The text of messages for a model that has no template."""
    return "\n".join(message.get("content") or "" for message in messages)


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise UnusableMessageError("a message has no role")
    if isinstance(content, list):
        if not all(isinstance(block, dict) and isinstance(block.get("text"), str) for block in content):
            raise UnusableMessageError("a message has content other than text")
        content = "".join(block["text"] for block in content)
    if content is not None and not isinstance(content, str):
        raise UnusableMessageError("a message's content is neither text nor a list of text blocks")
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message = message | {"tool_calls": [_with_values(call) for call in calls]}
    return message | {"content": content}


def _with_values(call: Any) -> Any:
    """OpenAI writes a call's arguments as JSON in a string; templates write JSON themselves."""
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments, str):
        return call
    try:
        values = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return call
    return call | {"function": function | {"arguments": values}} if isinstance(values, dict) else call
