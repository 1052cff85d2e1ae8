"""Graders at work: ``build`` makes one of its definition, ``grade`` gives each sample a reward or a reason."""

from service.graders import schemas
from workers.graders.grading import Grade, GradeError, Grader, Sample
from workers.graders.multi import MultiGrader
from workers.graders.string_check import StringCheckGrader
from workers.graders.text_similarity import TextSimilarityGrader

__all__ = ["Grade", "GradeError", "Grader", "Sample", "build"]


def build(grader: schemas.Grader) -> Grader:
    """The grader that ``grader`` defines, its templates and formula parsed once."""
    match grader:
        case schemas.StringCheck():
            return StringCheckGrader(grader)
        case schemas.TextSimilarity():
            return TextSimilarityGrader(grader)
        case schemas.Multi():
            return MultiGrader(grader, {key: build(each) for key, each in grader.graders.items()})
