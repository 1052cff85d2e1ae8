"""Chat templates as transformers renders them: the same environment, filters and names, without transformers."""

import json
from collections import OrderedDict
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from workers.bounded.tasks import Answer, Render, exceeded

MAX_KNOWN = 16


class Generation(Extension):
    """``{% generation %}``, with which templates mark what the assistant says; the text is what is in it."""

    tags = {"generation"}  # noqa: RUF012, jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_known: OrderedDict[str, Template] = OrderedDict()


def learn(source: str) -> None:
    """Have ``source`` at hand in this process and in those that are forked from it. Raises what it fails with."""
    _known[source] = _environment().from_string(source)
    while len(_known) > MAX_KNOWN:
        _known.popitem(last=False)


def render(task: Render) -> Answer:
    try:
        template = _known.get(task["template"]) or _environment().from_string(task["template"])
        parts, length = [], 0
        names = {**task["special_tokens"], "messages": task["messages"], "tools": task["tools"], "documents": None}
        for part in template.generate(**names, add_generation_prompt=task["answer_next"]):
            parts.append(part)
            length += len(part)
            if length > task["most"]:
                return exceeded(task)
        return {"text": "".join(parts)}
    except TemplateError as error:
        return {"refused": f"the model's chat template refuses the messages: {error}"}
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        empty = next((number for number, each in enumerate(task["messages"]) if each.get("content") is None), None)
        cause = "" if empty is None else f", perhaps because messages[{empty}] has no content"
        reason = f"its code fails with {type(error).__name__}: {error}"
        return {"refused": f"the model's chat template cannot write the messages{cause}; {reason}"}


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
