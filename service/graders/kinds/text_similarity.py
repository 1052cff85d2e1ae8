"""``text_similarity``: how close two texts are."""

from typing import Any, Literal

from service.graders.bounds import FRACTION, Interval
from service.graders.definition import Fault, GraderDefinition, GraderName, TemplateText

Metric = Literal[
    "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
]


class TextSimilarity(GraderDefinition):
    """Similarity of ``input`` and ``reference`` in [0, 1].

    The score is the reward; ``pass_threshold`` belongs to evaluations and does not change it.
    """

    type: Literal["text_similarity"]
    name: GraderName
    input: TemplateText
    reference: TemplateText
    evaluation_metric: Metric
    pass_threshold: float | None = None

    @classmethod
    def unsupported(cls, fields: dict[str, Any]) -> Fault | None:
        if fields.get("evaluation_metric") != "cosine":
            return None
        return Fault("evaluation_metric", "The metric 'cosine' is not supported: it needs a model of embeddings.")

    def templates(self) -> list[str]:
        return [self.input, self.reference]

    def bounds(self) -> Interval:
        return FRACTION
