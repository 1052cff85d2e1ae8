"""``multi``: a formula over the rewards of other graders."""

from collections.abc import Mapping
from dataclasses import replace

from service.graders.formula import Formula, FormulaError
from service.graders.multi import Multi
from workers.graders.grading import Grade, Grader, GraderSample, limited, total


class MultiGrader:
    """``graders`` has one built grader for each key of ``definition.graders``.

    A grader that the formula does not use is graded and reported as well, but its failure does not cost the reward.
    """

    def __init__(self, definition: Multi, graders: Mapping[str, Grader]) -> None:
        self._name = definition.name
        self._formula = Formula.parse(definition.calculate_output, variables=graders.keys())
        self._graders = graders

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        grades = {key: grader.grade(samples) for key, grader in self._graders.items()}
        return [self._combine({key: each[i] for key, each in grades.items()}) for i in range(len(samples))]

    def _combine(self, parts: dict[str, Grade]) -> Grade:
        # A grader within a multi grader asks one judge at most.
        by_key = {key: used for key, part in parts.items() for used in part.usage.values()}
        usage = total(part.usage for part in parts.values())
        extracted = next((part.extracted for part in parts.values() if part.extracted is not None), None)
        grade = replace(self._reward(parts), usage=usage, sub_usage=by_key, extracted=extracted)
        return limited(grade, self._name, "formula_parse_error", raised=True)

    def _reward(self, parts: dict[str, Grade]) -> Grade:
        rewards = {key: part.reward for key, part in parts.items() if part.reward is not None}
        errors = {key: part.error for key, part in parts.items() if part.error is not None}
        failed = {key: parts[key] for key in self._formula.variables if key in errors}
        if failed:
            key, first = next(iter(failed.items()))
            at_fault = all(part.sample_at_fault for part in failed.values())
            raised = not at_fault and all(part.earns_least for part in failed.values())
            away = any(part.away for part in failed.values())
            detail = f"{key}: {first.detail}"
            return Grade(None, rewards, first.error, detail, errors, at_fault, raised=raised, away=away)
        try:
            return Grade(self._formula.evaluate(rewards), rewards, sub_errors=errors)
        except FormulaError as error:
            return Grade(None, rewards, "formula_parse_error", str(error), errors, raised=True)
