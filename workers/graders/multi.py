"""``multi``: a formula over the rewards of other graders."""

from collections.abc import Iterable, Mapping

from service.graders.formula import Formula, FormulaError
from service.graders.schemas import Multi
from workers.graders.grading import Grade, Grader, Sample, TokenUsage


class MultiGrader:
    """``graders`` has one built grader for each key of ``definition.graders``.

    A grader that the formula does not use is graded and reported as well, but its failure does not cost the reward.
    """

    def __init__(self, definition: Multi, graders: Mapping[str, Grader]) -> None:
        self._formula = Formula.parse(definition.calculate_output, variables=graders.keys())
        self._graders = graders

    def grade(self, samples: list[Sample]) -> list[Grade]:
        grades = {key: grader.grade(samples) for key, grader in self._graders.items()}
        return [self._combine({key: each[i] for key, each in grades.items()}) for i in range(len(samples))]

    def _combine(self, parts: dict[str, Grade]) -> Grade:
        rewards = {key: part.reward for key, part in parts.items() if part.reward is not None}
        errors = {key: part.error for key, part in parts.items() if part.error is not None}
        usage = _total(part.usage for part in parts.values())
        failed = {key: parts[key] for key in self._formula.variables if key in errors}
        if failed:
            key, first = next(iter(failed.items()))
            at_fault = all(part.sample_at_fault for part in failed.values())
            raised = not at_fault and all(part.earns_least for part in failed.values())
            away = any(part.away for part in failed.values())
            return Grade(None, rewards, first.error, f"{key}: {first.detail}", errors, at_fault, usage, raised, away)
        try:
            return Grade(self._formula.evaluate(rewards), rewards, sub_errors=errors, usage=usage)
        except FormulaError as error:
            return Grade(None, rewards, "formula_parse_error", str(error), errors, usage=usage, raised=True)


def _total(usages: Iterable[Mapping[str, TokenUsage]]) -> dict[str, TokenUsage]:
    total: dict[str, TokenUsage] = {}
    for usage in usages:
        for model, used in usage.items():
            total[model] = total.get(model, TokenUsage()) + used
    return total
