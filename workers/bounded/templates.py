"""Chat templates as transformers renders them: the same environment, filters and names, without transformers."""

import json
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from workers.bounded.tasks import Names, Render, TaskResult, exceeded

MAX_KNOWN = 16
FAILURES = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a template may fail with that is its own fault, or the messages'."""


class Generation(Extension):
    """``{% generation %}``, with which templates mark what the assistant says; the text is what is in it."""

    tags = {"generation"}  # noqa: RUF012, jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass(frozen=True)
class Known:
    """A template that was read, and the names it reads."""

    template: Template
    names: frozenset[str]


_known: OrderedDict[str, Known] = OrderedDict()


def learn(source: str) -> Known:
    """Have ``source`` at hand in this process and in those that are forked from it. Raises what it fails with."""
    environment = _environment()
    parsed = environment.parse(source)
    names = meta.find_undeclared_variables(parsed)
    _known[source] = Known(environment.from_string(parsed), frozenset(names))
    while len(_known) > MAX_KNOWN:
        _known.popitem(last=False)
    return _known[source]


def render(task: Render) -> TaskResult:
    try:
        known = _known.get(task["template"]) or learn(task["template"])
        parts, length = [], 0
        names = {
            **task["values"],
            **task["special_tokens"],
            "messages": task["messages"],
            "tools": task["tools"],
            "documents": None,
            "add_generation_prompt": task["answer_next"],
        }
        if task["now"] is not None:
            names["strftime_now"] = datetime.fromisoformat(task["now"]).strftime
        for part in known.template.generate(names):
            parts.append(part)
            length += len(part)
            if length > task["most"]:
                return exceeded(task)
        return {"text": "".join(parts)}
    except TemplateError as error:
        return {"refused": f"the model's chat template refuses the messages: {error}"}
    except FAILURES as error:
        empty = next((number for number, each in enumerate(task["messages"]) if each.get("content") is None), None)
        cause = "" if empty is None else f", perhaps because messages[{empty}] has no content"
        reason = f"its code fails with {type(error).__name__}: {error}"
        return {"refused": f"the model's chat template cannot write the messages{cause}; {reason}"}


def names(task: Names) -> TaskResult:
    try:
        known = _known.get(task["template"]) or learn(task["template"])
    except FAILURES as error:
        return {"refused": f"the model's chat template cannot be read: {error}"}
    return {"names": sorted(known.names)}


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return made


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja's own escapes what HTML would read.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
