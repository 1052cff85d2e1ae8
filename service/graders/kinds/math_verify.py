"""``math_verify``: is the answer the same as mathematics?"""

from typing import Literal

from service.graders.bounds import EITHER, Interval
from service.graders.definition import OUTPUT_TEXT, GraderDefinition, GraderName, TemplateText


class MathVerify(GraderDefinition):
    """1.0 when the last mathematical expression of ``input`` equals ``reference``, else 0.0."""

    type: Literal["math_verify"]
    name: GraderName = "math_verify"
    input: TemplateText = OUTPUT_TEXT
    reference: TemplateText

    def templates(self) -> list[str]:
        return [self.input, self.reference]

    def bounds(self) -> Interval:
        return EITHER
