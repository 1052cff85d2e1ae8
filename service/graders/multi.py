"""``multi``: a formula over the rewards of other graders."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from service.graders.bounds import Interval, formula_bounds
from service.graders.definition import MAX_REWARD, GraderDefinition, GraderName
from service.graders.formula import Formula, is_variable_name
from service.graders.registry import Single

MAX_GRADERS = 20


def _check_variable_name(name: str) -> str:
    if not is_variable_name(name):
        raise ValueError(
            f"'{name}' cannot stand in a formula: a grader's key is letters, digits and underscores and does not start "
            "with a digit."
        )
    return name


GraderKey = Annotated[GraderName, AfterValidator(_check_variable_name)]
SingleGrader = Annotated[Single, Field(discriminator="type")]


class Multi(GraderDefinition):
    """A formula over the scores of named graders, for example ``0.8 * exact + 0.2 * close``."""

    type: Literal["multi"]
    name: GraderName = "multi"
    graders: dict[GraderKey, SingleGrader] = Field(min_length=1, max_length=MAX_GRADERS)
    calculate_output: str

    @field_validator("calculate_output")
    @classmethod
    def _check_formula(cls, formula: str, info: ValidationInfo) -> str:
        # Without valid graders there are no names to check the formula against, and their error comes first.
        if "graders" in info.data:
            Formula.parse(formula, variables=info.data["graders"].keys())
        return formula

    @property
    def parts(self) -> Mapping[str, Single]:
        return self.graders

    def templates(self) -> list[str]:
        return [template for grader in self.graders.values() for template in grader.templates()]

    def bounds(self) -> Interval:
        ranges = {key: part.bounds() for key, part in self.graders.items()}
        found = formula_bounds(Formula.parse(self.calculate_output, ranges.keys()), ranges)
        # Rewards beyond are refused.
        return Interval(_limited(found.low), _limited(found.high))


def _limited(end: float) -> float:
    return min(max(end, -MAX_REWARD), MAX_REWARD) if math.isfinite(end) else end


Grader = Annotated[Single | Multi, Field(discriminator="type")]
