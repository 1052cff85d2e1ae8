"""What a chat template is told beside the messages: what may be named, and what a model's folder remembers of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "chat_template_kwargs.json"
"""In a model's folder: the object that chats with it are rendered with, unless a request says otherwise."""
MAX_BYTES = 16 * 1024
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""What the service tells templates itself."""
TOKEN = "_token"
"""What the names of a tokenizer's special tokens end with, which templates are told too."""


class MalformedTemplateError(Exception):
    """The file of a model's folder is not what it should be; the message says why."""


def fault(values: Mapping[str, Any]) -> str | None:
    """Why a template is not told these, if so. Whether it reads them is known only where it is at hand."""
    for name in values:
        if is_reserved(name):
            return f"'{name[:64]}' is what the service itself tells the chat template"
    size = len(json.dumps(values, ensure_ascii=False).encode(errors="replace"))
    return f"it has {size} bytes as JSON; at most {MAX_BYTES} are allowed" if size > MAX_BYTES else None


def is_reserved(name: str) -> bool:
    return name in RESERVED or name.endswith(TOKEN) or name == "additional_special_tokens"


def unread(values: Mapping[str, Any], names: set[str]) -> str | None:
    """What to say of values that a template, which reads ``names``, never looks at; None where there are none."""
    unknown = sorted(values.keys() - names)
    if not unknown:
        return None
    known = ", ".join(sorted(name for name in names if not is_reserved(name))) or "none"
    return f"the model's chat template does not read '{unknown[0][:64]}'. It reads: {known}"


def remembered(folder: Path) -> dict[str, Any]:
    """What the model in ``folder`` is rendered with. Raises ``MalformedTemplateError``."""
    try:
        raw = (folder / FILE).read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise MalformedTemplateError(f"the model's {FILE} cannot be read: {error.strerror}") from error
    try:
        values = json.loads(raw) if len(raw) <= 2 * MAX_BYTES else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise MalformedTemplateError(f"the model's {FILE} is not a JSON object of at most {MAX_BYTES} bytes")
    wrong = fault(values)
    if wrong is not None:
        raise MalformedTemplateError(f"in the model's {FILE}, {wrong}")
    return values
