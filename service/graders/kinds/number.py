"""``number``: is the last number of a text near enough to another?"""

from typing import Annotated, Literal

from pydantic import Field

from service.graders.bounds import EITHER, Interval
from service.graders.definition import OUTPUT_TEXT, GraderDefinition, GraderName, TemplateText


class Number(GraderDefinition):
    """1.0 where the last number of ``input`` is at most ``tolerance`` from the one in ``reference``, else 0.0."""

    type: Literal["number"]
    name: GraderName = "number"
    input: TemplateText = OUTPUT_TEXT
    reference: TemplateText
    tolerance: Annotated[float, Field(ge=0)] = 0.0

    def templates(self) -> list[str]:
        return [self.input, self.reference]

    def bounds(self) -> Interval:
        return EITHER
