"""``string_check``: two texts compared."""

from typing import Any, Literal

from pydantic import field_validator

from service.graders.bounds import EITHER, Interval
from service.graders.definition import GraderDefinition, GraderName, TemplateText


class StringCheck(GraderDefinition):
    """1.0 when ``input operation reference`` holds, else 0.0.

    ``eq`` and ``ne`` compare exactly, ``like`` and ``ilike`` ask whether ``input`` contains ``reference``; ``ilike``
    ignores case. ``neq``, the name in OpenAI's guide, is taken for ``ne``.
    """

    type: Literal["string_check"]
    name: GraderName
    input: TemplateText
    reference: TemplateText
    operation: Literal["eq", "ne", "like", "ilike"]

    @field_validator("operation", mode="before")
    @classmethod
    def _accept_neq(cls, value: Any) -> Any:
        return "ne" if value == "neq" else value

    def templates(self) -> list[str]:
        return [self.input, self.reference]

    def bounds(self) -> Interval:
        return EITHER
