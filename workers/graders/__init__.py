"""Graders at work: ``build`` makes one of its definition, ``grade`` gives each sample a reward or a reason."""

from service.graders import schemas
from service.graders.admission import check_allowed
from service.graders.settings import GraderSettings
from workers.graders import http, python
from workers.graders.code_tests import CodeTestsGrader
from workers.graders.grading import Grade, GradeError, Grader, Limited, Sample, TokenUsage
from workers.graders.http import HttpGrader
from workers.graders.jail import JailError
from workers.graders.judge import JudgeGrader
from workers.graders.math_verify import MathVerifyGrader
from workers.graders.multi import MultiGrader
from workers.graders.python import PythonGrader
from workers.graders.string_check import StringCheckGrader
from workers.graders.text_similarity import TextSimilarityGrader

__all__ = ["Grade", "GradeError", "Grader", "JailError", "Sample", "TokenUsage", "batch_size", "build", "faults"]

JAILED_BATCH = 16
"""A jail starts anew for every batch; so many runs make up for it."""


def build(grader: schemas.Grader, settings: GraderSettings | None = None) -> Grader:
    """The grader that ``grader`` defines, its templates and formula parsed once.

    Without ``settings`` nothing is allowed that runs code or asks another server. Raises ``schemas.GraderError`` for
    what they do not allow, ``JailError`` where code is allowed and no jail holds, and ``OSError`` when the file of a
    key or a secret cannot be read.
    """
    settings = settings or GraderSettings()
    check_allowed(grader, settings, "grader")
    return _build(grader, settings)


def faults(grader: schemas.Grader, settings: GraderSettings, path: str = "grader") -> dict[str, str]:
    """What keeps graders' sources from being loaded in the jail, such as what they import, by field.

    Raises ``JailError`` where no jail holds.
    """
    match grader:
        case schemas.Multi():
            parts = [faults(each, settings, f"{path}.graders.{key}") for key, each in grader.graders.items()]
            return {field: fault for part in parts for field, fault in part.items()}
        case schemas.Python() if (fault := python.fault(grader, settings)) is not None:
            return {f"{path}.source": fault}
        case _:
            return {}


def batch_size(grader: schemas.Grader) -> int:
    """How many samples a batch should have, if they can be had, for what a batch costs by itself to be small."""
    match grader:
        case schemas.Http():
            return http.BATCH
        case schemas.Python() | schemas.CodeTests():
            return JAILED_BATCH
        case schemas.Multi():
            return max(batch_size(each) for each in grader.graders.values())
        case _:
            return 1


def _build(grader: schemas.Grader, settings: GraderSettings) -> Grader:
    match grader:
        case schemas.StringCheck():
            return StringCheckGrader(grader)
        case schemas.TextSimilarity():
            return TextSimilarityGrader(grader)
        case schemas.MathVerify():
            return MathVerifyGrader(grader)
        case schemas.Python():
            own = PythonGrader(grader, settings)
            return Limited(own, grader.name, "python_grader_runtime_error", raised=True)
        case schemas.CodeTests():
            return CodeTestsGrader(grader, settings)
        case schemas.ScoreModel() | schemas.LabelModel():
            return JudgeGrader(grader, settings)
        case schemas.Http():
            return Limited(HttpGrader(grader, settings), grader.name, "other_error", raised=False)
        case schemas.Multi():
            parts = {key: _build(each, settings) for key, each in grader.graders.items()}
            return Limited(MultiGrader(grader, parts), grader.name, "formula_parse_error", raised=True)
