"""Every kind of grader, one line each. Nothing else names them: what a kind is, its class says."""

from typing import get_args

from service.graders.definition import GraderDefinition
from service.graders.kinds.code_tests import CodeTests
from service.graders.kinds.http import Http
from service.graders.kinds.label_model import LabelModel
from service.graders.kinds.length import Length
from service.graders.kinds.math_verify import MathVerify
from service.graders.kinds.python import Python
from service.graders.kinds.score_model import ScoreModel
from service.graders.kinds.string_check import StringCheck
from service.graders.kinds.text_similarity import TextSimilarity

# In the order in which errors list them.
Single = (
    StringCheck
    | TextSimilarity
    | Python
    | ScoreModel
    | LabelModel
    | MathVerify
    | CodeTests
    | Http
    | Length
)  # fmt: skip


def type_of(kind: type[GraderDefinition]) -> str:
    """The ``type`` on the wire of a kind of grader."""
    (name,) = get_args(kind.model_fields["type"].annotation)
    return str(name)


SINGLE_GRADERS: dict[str, type[Single]] = {type_of(kind): kind for kind in get_args(Single)}
"""By ``type``: all but ``multi``, which is made of them."""
ALIASES = {alias: name for name, kind in SINGLE_GRADERS.items() for alias in kind.aliases}
