"""Texts with holes: ``{{item.answer}}`` is a field of a dataset row, ``{{sample.output_text}}`` what the model said.

A template is parsed once, when a grader is accepted, and filled for every sample. There is no expression language: a
hole names one value by a path of field names and list positions, and nothing else.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from service.contracts import strict_json

NAMESPACES = ("item", "sample")
SAMPLE_MEMBERS = ("output_text", "output_json", "output_tools")
_MEMBERS_OF_THE_HOSTED_API = ("choices", "output_audio")
_ALLOWED = "allowed are {{item.FIELD}}, {{sample.output_text}} and {{sample.output_json.FIELD}}"

MAX_LENGTH = 256 * 1000
MAX_HOLES = 1000
MAX_STEPS = 100
"""Of one path."""
MAX_FILLED = 1 << 20
"""Characters of a template that is filled."""

_NAMESPACE = re.compile(r"\w+")
_STEP = re.compile(
    r"""\.(?P<name>[^\s.\[\]{}()|'"]+)    # .answer
      | \[(?P<index>[0-9]{1,9})\]        # [0]
      | \[(?P<quote>["'])(?P<key>[^"']+)(?P=quote)\]   # ["a name with spaces"]
    """,
    re.VERBOSE,
)


class TemplateError(ValueError):
    """The text is not a template; the message says where and what is allowed."""


class MissingVariableError(Exception):
    """A template names something that the row or the sample does not have.

    ``reference`` is the path as the template has it, ``why`` the step that failed.
    """

    def __init__(self, reference: "Reference", why: str) -> None:
        super().__init__(f"{{{{{reference}}}}}: {why}")
        self.reference, self.why = reference, why


class TooLongError(Exception):
    """A text is longer than what reads it takes, such as a filled template of more than ``MAX_FILLED`` characters."""

    def __init__(self, message: str = f"the template makes a text of more than {MAX_FILLED:,} characters") -> None:
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Reference:
    """A path such as ``item.a.b[0].c``: a namespace, then field names (str) and list positions (int)."""

    namespace: str
    steps: tuple[str | int, ...]

    def __str__(self) -> str:
        return self.namespace + "".join(_step_text(step) for step in self.steps)

    def resolve(self, root: Any) -> Any:
        """The value at this path of ``root``. Raises ``MissingVariableError``."""
        value = root
        for depth, step in enumerate(self.steps):
            if not _has(value, step):
                here = Reference(self.namespace, self.steps[:depth])
                raise MissingVariableError(self, f"{here} {_why_not(value, step)}")
            value = value[step]
        return value


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: literal text and references, in order. Texts without ``{{`` are a single literal."""

    parts: tuple[str | Reference, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Parse ``text``. Raises ``TemplateError``, a ``ValueError``."""
        if len(text) > MAX_LENGTH:
            raise TemplateError(f"a template may have at most {MAX_LENGTH} characters, not {len(text)}")
        if text.count("{{") > MAX_HOLES:
            raise TemplateError(f"a template may hold '{{{{' at most {MAX_HOLES} times")
        parts: list[str | Reference] = []
        position = 0
        while (start := text.find("{{", position)) >= 0:
            # Of three braces in a row the last two open the hole, so that \boxed{{{item.answer}}} means what it says.
            while text.startswith("{", start + 2):
                start += 1
            end = text.find("}}", start)
            if end < 0:
                raise TemplateError(f"'{{{{' at character {start + 1} is never closed by '}}}}'; {_ALLOWED}")
            parts += [text[position:start], _parse_reference(text[start + 2 : end])]
            position = end + 2
        parts.append(text[position:])
        _check_literals(parts)
        return cls(tuple(part for part in parts if part != ""))

    def __str__(self) -> str:
        return "".join(part if isinstance(part, str) else f"{{{{{part}}}}}" for part in self.parts)

    @property
    def paths(self) -> tuple[Reference, ...]:
        """The references, in the order of the text; one named twice is listed twice."""
        return tuple(part for part in self.parts if isinstance(part, Reference))

    @property
    def needs_json(self) -> bool:
        """Whether filling needs the model's answer parsed as JSON."""
        return any(path.namespace == "sample" and path.steps[0] == "output_json" for path in self.paths)

    def render(self, *, item: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
        """Fill the holes: strings as they are, anything else as compact JSON.

        Raises ``MissingVariableError``, and ``TooLongError`` as soon as that is certain.
        """
        roots = {"item": item, "sample": sample}
        filled, length = [], 0
        for part in self.parts:
            filled.append(part if isinstance(part, str) else _value_text(part.resolve(roots[part.namespace])))
            length += len(filled[-1])
            if length > MAX_FILLED:
                raise TooLongError
        return "".join(filled)


def _parse_reference(inside: str) -> Reference:
    source = inside.strip()
    shown = f"'{{{{{inside[:80]}}}}}'"
    namespace = _NAMESPACE.match(source)
    if namespace is None:
        raise TemplateError(f"{shown} names nothing; {_ALLOWED}")
    if namespace.group() not in NAMESPACES:
        raise TemplateError(f"{shown}: unknown namespace '{namespace.group()[:80]}'; {_ALLOWED}")
    steps = _parse_steps(source, namespace.end(), shown)
    if not steps:
        raise TemplateError(f"{shown} needs a field after '{source}'; {_ALLOWED}")
    if namespace.group() == "sample":
        _check_sample_member(steps, shown)
    return Reference(namespace.group(), steps)


def _parse_steps(source: str, position: int, shown: str) -> tuple[str | int, ...]:
    steps: list[str | int] = []
    while position < len(source):
        step = _STEP.match(source, position)
        if step is None:
            raise TemplateError(
                f"{shown}: cannot read '{source[position:][:80]}'; "
                'a path is made of .name, [0] and ["name"], without operators or filters'
            )
        if step["index"] is not None:
            steps.append(int(step["index"]))
        else:
            steps.append(step["name"] or step["key"])
        position = step.end()
        if len(steps) > MAX_STEPS:
            raise TemplateError(f"{shown}: a path may have at most {MAX_STEPS} steps")
    return tuple(steps)


def _check_sample_member(steps: tuple[str | int, ...], shown: str) -> None:
    member = steps[0]
    if member in _MEMBERS_OF_THE_HOSTED_API:
        raise TemplateError(f"{shown}: sample.{member} is not supported yet; {_ALLOWED}")
    if member not in SAMPLE_MEMBERS:
        raise TemplateError(f"{shown}: a sample has no '{str(member)[:80]}'; {_ALLOWED}")
    if member == "output_text" and len(steps) > 1:
        raise TemplateError(f"{shown}: sample.output_text is a text and has no parts; for JSON use sample.output_json")


def _check_literals(parts: list[str | Reference]) -> None:
    """Refuse a ``}}`` that closes nothing. Nested JSON such as ``{"a": {"b": 1}}`` closes its own braces."""
    depth = 0
    for part in parts:
        if isinstance(part, Reference):
            continue
        for position, character in enumerate(part):
            if character == "{":
                depth += 1
            elif character == "}":
                if depth == 0 and "}" in (part[position + 1 : position + 2], part[max(position - 1, 0) : position]):
                    raise TemplateError(f"'}}}}' closes nothing in '{part[:80]}'; {_ALLOWED}")
                depth = max(depth - 1, 0)


def _step_text(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    if _STEP.fullmatch(f".{step}"):
        return f".{step}"
    return f'["{step}"]'


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) else strict_json.dumps(value)


def _has(value: Any, step: str | int) -> bool:
    if isinstance(step, int):
        return isinstance(value, list) and step < len(value)
    return isinstance(value, Mapping) and step in value


def _why_not(value: Any, step: str | int) -> str:
    if isinstance(step, str) and isinstance(value, Mapping):
        fields = ", ".join(str(key)[:40] for key in islice(value, 8)) + (", …" if len(value) > 8 else "")
        return f"has no field '{step}' (it has: {fields or 'none'})"
    if isinstance(step, str):
        return f"is {strict_json.kind(value)}, not an object"
    return f"has no element {step}" if isinstance(value, list) else f"is {strict_json.kind(value)}, not a list"
