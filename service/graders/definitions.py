"""Grader definitions as they travel on the wire and in a frozen job spec.

The shapes are those of OpenAI's fine-tuning API, and three of our own: ``math_verify``, ``code_tests`` and ``http``. A
template such as ``{{item.answer}}`` or ``{{sample.output_text}}`` may stand wherever a text is compared or sent;
``service.graders.template`` parses it, ``workers.graders`` fills it.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from service.contracts.strict_json import kind
from service.graders.formula import Formula, is_variable_name
from service.graders.settings import origin_of
from service.graders.template import Template

MAX_GRADERS = 20
MAX_SOURCE_BYTES = 256 * 1000
MAX_REWARD = 1e6
"""Rewards are from ``-MAX_REWARD`` to this; a grader that gives another has failed."""
OUTPUT_TEXT = "{{sample.output_text}}"


def _check_template(text: str) -> str:
    Template.parse(text)
    return text


def _check_variable_name(name: str) -> str:
    if not is_variable_name(name):
        raise ValueError(
            f"'{name}' cannot stand in a formula: a grader's key is letters, digits and underscores and does not start "
            "with a digit."
        )
    return name


TemplateText = Annotated[str, AfterValidator(_check_template)]
GraderName = Annotated[str, Field(min_length=1, max_length=64)]
GraderKey = Annotated[GraderName, AfterValidator(_check_variable_name)]


class _Definition(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StringCheck(_Definition):
    """1.0 when ``input operation reference`` holds, else 0.0.

    ``eq`` and ``ne`` compare exactly, ``like`` and ``ilike`` ask whether ``input`` contains ``reference``; ``ilike``
    ignores case. ``neq``, the name in OpenAI's guide, is taken for ``ne``.
    """

    type: Literal["string_check"]
    name: GraderName
    input: TemplateText
    reference: TemplateText
    operation: Literal["eq", "ne", "like", "ilike"]

    @field_validator("operation", mode="before")
    @classmethod
    def _accept_neq(cls, value: Any) -> Any:
        return "ne" if value == "neq" else value

    def templates(self) -> list[str]:
        return [self.input, self.reference]


Metric = Literal[
    "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
]


class TextSimilarity(_Definition):
    """Similarity of ``input`` and ``reference`` in [0, 1].

    The score is the reward; ``pass_threshold`` belongs to evaluations and does not change it.
    """

    type: Literal["text_similarity"]
    name: GraderName
    input: TemplateText
    reference: TemplateText
    evaluation_metric: Metric
    pass_threshold: float | None = None

    def templates(self) -> list[str]:
        return [self.input, self.reference]


def _check_source(source: str) -> str:
    size = len(source.encode(errors="surrogatepass"))
    if size >= MAX_SOURCE_BYTES:
        raise ValueError(f"the source has {size} bytes; it must have fewer than {MAX_SOURCE_BYTES}")
    return source


class Python(_Definition):
    """What the function ``grade(sample, item)`` of ``source`` returns, a finite number. It runs in a jail.

    Whether ``source`` can be read is asked once, by ``parse_grader``, and not when a stored definition is.
    ``image_tag`` chose among images of the hosted API; there is one environment here, and the tag is only kept.
    """

    type: Literal["python"]
    name: GraderName = "python"
    source: Annotated[str, AfterValidator(_check_source)]
    image_tag: Annotated[str, Field(max_length=64)] | None = None

    def templates(self) -> list[str]:
        return []


_BLOCKS = ("input_text", "output_text")


def _check_content(content: Any) -> Any:
    """A text, a block of text, or a list of either: the shapes that the hosted API takes, but for images and sound."""
    for index, part in enumerate(content if isinstance(content, list) else [content]):
        where = f"part {index + 1}: " if isinstance(content, list) else ""
        if isinstance(part, dict):
            if part.get("type") not in _BLOCKS:
                raise ValueError(f"{where}a block must be of type input_text or output_text; judges read texts only")
            if set(part) != {"type", "text"} or not isinstance(part["text"], str):
                raise ValueError(f"{where}a block has the fields 'type' and 'text', a string, and no others")
            part = part["text"]
        if not isinstance(part, str):
            raise ValueError(f"{where}expected a string or a block of text, but got {kind(part)}")
        Template.parse(part)
    return content


class InputMessage(_Definition):
    """One message of the prompt of a judge."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Any, AfterValidator(_check_content)]
    type: Literal["message"] | None = None

    def texts(self) -> list[str]:
        """The templates of its content, in order."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return [part if isinstance(part, str) else part["text"] for part in parts]


class SamplingParams(_Definition):
    """How a judge samples. ``max_completions_tokens`` is spelled as in OpenAI's API."""

    seed: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class _Judge(_Definition):
    name: GraderName
    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Annotated[list[InputMessage], Field(min_length=1, max_length=100)]
    sampling_params: SamplingParams | None = None

    def templates(self) -> list[str]:
        return [text for message in self.input for text in message.texts()]


class ScoreModel(_Judge):
    """The number that the judge ``model`` answers with, clipped to ``range``."""

    type: Literal["score_model"]
    range: tuple[float, float] = (0.0, 1.0)
    pass_threshold: float | None = None

    @field_validator("range")
    @classmethod
    def _check_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"the first bound, {value[0]:g}, must be below the second, {value[1]:g}")
        if max(map(abs, value)) > MAX_REWARD:
            raise ValueError(f"rewards must be from {-MAX_REWARD:,.0f} to {MAX_REWARD:,.0f}")
        return value


class LabelModel(_Judge):
    """1.0 when the label that the judge ``model`` chooses is one of ``passing_labels``, else 0.0."""

    type: Literal["label_model"]
    labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=100)]
    passing_labels: Annotated[list[str], Field(min_length=1, max_length=100)]

    @model_validator(mode="after")
    def _check_labels(self) -> "LabelModel":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a label is listed twice in 'labels'")
        unknown = [label for label in self.passing_labels if label not in self.labels]
        if unknown:
            raise ValueError(f"the passing label '{unknown[0][:80]}' is not one of 'labels'")
        return self


class MathVerify(_Definition):
    """1.0 when the last mathematical expression of ``input`` equals ``reference``, else 0.0."""

    type: Literal["math_verify"]
    name: GraderName = "math_verify"
    input: TemplateText = OUTPUT_TEXT
    reference: TemplateText

    def templates(self) -> list[str]:
        return [self.input, self.reference]


class CodeTests(_Definition):
    """1.0 when the program in ``input`` passes all ``tests``, else 0.0; with ``partial`` the fraction that it passes.

    The program is the last fenced block of Python in ``input``, or all of it. ``tests`` is a template that gives a JSON
    list, each entry of it ``{"stdin", "stdout"}``, ``{"call", "expected"}`` or the text ``assert call == literal``.
    ``timeout_seconds`` is for each script, and for all calls of an answer together.
    """

    type: Literal["code_tests"]
    name: GraderName = "code_tests"
    input: TemplateText = OUTPUT_TEXT
    tests: TemplateText
    timeout_seconds: Annotated[float, Field(gt=0, le=120)] = 10.0
    partial: bool = False

    def templates(self) -> list[str]:
        return [self.input, self.tests]


def _check_url(url: str) -> str:
    try:
        origin_of(url)
    except ValueError as error:
        raise ValueError(f"'{url[:200]}' cannot be called: {error}") from None
    if "#" in url:
        raise ValueError("it must not have a fragment (#)")
    return url


class Http(_Definition):
    """The rewards that the scoring service at ``url`` answers with, a batch of samples at a time."""

    type: Literal["http"]
    name: GraderName = "http"
    url: Annotated[str, Field(max_length=2000), AfterValidator(_check_url)]

    def templates(self) -> list[str]:
        return []


Single = StringCheck | TextSimilarity | Python | ScoreModel | LabelModel | MathVerify | CodeTests | Http
SingleGrader = Annotated[Single, Field(discriminator="type")]


class Multi(_Definition):
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

    def templates(self) -> list[str]:
        return [template for grader in self.graders.values() for template in grader.templates()]


Grader = Annotated[Single | Multi, Field(discriminator="type")]
