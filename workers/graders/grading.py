"""What goes into a grader and what comes out: ``Sample`` and ``Grade``, and the filling of templates between them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

from service.graders import strict_json
from service.graders.template import MissingVariable, Template

GradeError = Literal["sample_parse_error", "invalid_variable_error", "formula_parse_error", "other_error"]
"""Names of the flags under which the API reports that a sample could not be graded."""


class SampleNotJSON(Exception):
    """A template asks for the answer as JSON and the answer is not JSON."""


@dataclass(frozen=True)
class Sample:
    """An answer to grade. ``item`` is the whole dataset row, ``output_text`` what the model said."""

    item: dict[str, Any]
    output_text: str

    @cached_property
    def output_json(self) -> Any:
        """The answer parsed as JSON. Raises ``SampleNotJSON``."""
        try:
            return strict_json.loads(self.output_text)
        except strict_json.InvalidJSON as error:
            raise SampleNotJSON(f"the answer is not JSON: {error}") from None


@dataclass(frozen=True)
class Grade:
    """A reward, or the reason why there is none. Exactly one of ``reward`` and ``error`` is None.

    ``sub_rewards`` and ``sub_errors`` are a multi grader's, by key; each key is in one of the two. ``sample_at_fault``
    tells an answer that lacks what the grader reads (no JSON, a field missing in it) from a grader or a row that is
    wrong: the model can learn to avoid the former, so a trainer may prefer to count it and reward it with the minimum.
    """

    reward: float | None
    sub_rewards: dict[str, float] = field(default_factory=dict)
    error: GradeError | None = None
    detail: str | None = None
    sub_errors: dict[str, GradeError] = field(default_factory=dict)
    sample_at_fault: bool = False


class Grader(Protocol):
    """Grades a batch of samples; ``grades[i]`` is that of ``samples[i]``. Never raises for what a sample contains."""

    def grade(self, samples: list[Sample]) -> list[Grade]: ...


class Comparison:
    """A score of two texts that templates make of each sample."""

    def __init__(self, input: str, reference: str, score: Callable[[str, str], float]) -> None:
        self._input, self._reference = Template.parse(input), Template.parse(reference)
        self._score = score

    def grade(self, sample: Sample) -> Grade:
        try:
            return Grade(self._score(_fill(self._input, sample), _fill(self._reference, sample)))
        except SampleNotJSON as error:
            return Grade(None, error="sample_parse_error", detail=str(error), sample_at_fault=True)
        except MissingVariable as error:
            at_fault = error.reference.namespace == "sample"
            return Grade(None, error="invalid_variable_error", detail=str(error), sample_at_fault=at_fault)


def _fill(template: Template, sample: Sample) -> str:
    known = {"output_text": sample.output_text}
    if template.needs_json:
        known["output_json"] = sample.output_json
    return template.render(item=sample.item, sample=known)
