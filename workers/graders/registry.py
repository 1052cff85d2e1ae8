"""What grades for each kind of grader, one line each, by its ``type`` in ``service.graders.registry``."""

from service.graders import schemas
from service.graders.multi import Multi
from service.graders.settings import GraderSettings
from workers.graders.code_tests import CodeTestsGrader
from workers.graders.grading import Grader, SingleGrader
from workers.graders.http import HttpGrader
from workers.graders.label_model import LabelModelGrader
from workers.graders.length import LengthGrader
from workers.graders.math_verify import MathVerifyGrader
from workers.graders.multi import MultiGrader
from workers.graders.python import PythonGrader
from workers.graders.score_model import ScoreModelGrader
from workers.graders.string_check import StringCheckGrader
from workers.graders.text_similarity import TextSimilarityGrader

SINGLE_GRADERS: dict[str, type[SingleGrader]] = {
    "string_check": StringCheckGrader,
    "text_similarity": TextSimilarityGrader,
    "python": PythonGrader,
    "score_model": ScoreModelGrader,
    "label_model": LabelModelGrader,
    "math_verify": MathVerifyGrader,
    "code_tests": CodeTestsGrader,
    "http": HttpGrader,
    "length": LengthGrader,
}


def make(definition: schemas.Grader, settings: GraderSettings) -> Grader:
    """The grader that ``definition`` defines. Raises as its kind does."""
    if isinstance(definition, Multi):
        return MultiGrader(definition, {key: make(part, settings) for key, part in definition.graders.items()})
    return SINGLE_GRADERS[definition.type](definition, settings)
