"""``length``: is a text as short as it should be?"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from service.graders.bounds import FRACTION, Interval
from service.graders.definition import OUTPUT_TEXT, GraderDefinition, GraderName, TemplateText
from service.graders.template import MAX_FILLED


class Length(GraderDefinition):
    """1.0 for an ``input`` of up to ``target`` words or characters, from there falling evenly to 0.0 at ``limit``."""

    type: Literal["length"]
    name: GraderName = "length"
    input: TemplateText = OUTPUT_TEXT
    unit: Literal["words", "characters"] = "words"
    target: Annotated[int, Field(ge=0, le=MAX_FILLED)]
    limit: Annotated[int, Field(ge=1, le=MAX_FILLED)]

    @model_validator(mode="after")
    def _check_limit(self) -> "Length":
        if self.limit <= self.target:
            raise ValueError(f"'limit', {self.limit}, must be above 'target', {self.target}")
        return self

    def templates(self) -> list[str]:
        return [self.input]

    def bounds(self) -> Interval:
        return FRACTION
