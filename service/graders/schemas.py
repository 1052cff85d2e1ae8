"""Grader definitions as they travel on the wire and in a frozen job spec.

The shapes are those of OpenAI's fine-tuning API. A template such as ``{{item.answer}}`` or ``{{sample.output_text}}``
may stand wherever a string is compared; ``service.graders.template`` parses it, ``workers.graders`` fills it.
``parse_grader`` is the way in for what a user sent: it takes every shape that clients send and names what is wrong.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from service.graders.formula import Formula, is_variable_name
from service.graders.strict_json import kind
from service.graders.template import Template

MAX_GRADERS = 20


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


class TextSimilarity(_Definition):
    """Similarity of ``input`` and ``reference`` in [0, 1].

    The score is the reward; ``pass_threshold`` belongs to evaluations and does not change it.
    """

    type: Literal["text_similarity"]
    name: GraderName
    input: TemplateText
    reference: TemplateText
    evaluation_metric: Literal["fuzzy_match"]
    pass_threshold: float | None = None

    def templates(self) -> list[str]:
        return [self.input, self.reference]


SingleGrader = Annotated[StringCheck | TextSimilarity, Field(discriminator="type")]


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


Grader = Annotated[StringCheck | TextSimilarity | Multi, Field(discriminator="type")]


class GraderError(Exception):
    """A grader that cannot be accepted. ``param`` is the path of the offending field in what was sent."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.message, self.param = message, param


SUPPORTED = ("string_check", "text_similarity", "multi")
_SINGLE: dict[str, type[StringCheck] | type[TextSimilarity]] = {
    "string_check": StringCheck,
    "text_similarity": TextSimilarity,
}
_NOT_YET = ("python", "score_model", "label_model", "endpoint", "math_verify", "code_tests", "http")
_METRICS_NOT_YET = (
    "cosine",
    "bleu",
    "gleu",
    "meteor",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
)


def parse_grader(raw: Any, path: str) -> Grader:
    """The grader that ``raw``, found at ``path`` of a request, describes.

    Fields that are null count as absent. ``graders`` of a multi grader may be an object (key to grader), a list or one
    grader; of the latter two each grader's key is made of its name. Raises ``GraderError``.
    """
    fields, type_ = _fields_and_type(raw, path)
    if type_ != "multi":
        return _parse_single(fields, type_, path)
    graders = _parse_graders(fields.get("graders"), f"{path}.graders")
    return _validate(Multi, fields | {"graders": graders}, path)


def _fields_and_type(raw: Any, path: str) -> tuple[dict[str, Any], str]:
    if not isinstance(raw, dict):
        raise GraderError(f"Invalid type for '{path}': expected a grader object, but got {kind(raw)}.", path)
    fields = {key: value for key, value in raw.items() if value is not None}
    supported = f"Supported grader types: {', '.join(SUPPORTED)}."
    type_ = fields.get("type")
    if type_ is None:
        raise GraderError(f"Missing required field 'type'. {supported}", f"{path}.type")
    if type_ in _NOT_YET:
        raise GraderError(f"Graders of type '{type_}' are not supported yet. {supported}", f"{path}.type")
    if type_ not in SUPPORTED:
        raise GraderError(f"Unknown grader type {_shown(type_)}. {supported}", f"{path}.type")
    return fields, type_


def _parse_single(fields: dict[str, Any], type_: str, path: str) -> StringCheck | TextSimilarity:
    if type_ == "text_similarity" and fields.get("evaluation_metric") in _METRICS_NOT_YET:
        metric = fields["evaluation_metric"]
        raise GraderError(
            f"The metric '{metric}' is not supported yet. Supported metrics: fuzzy_match.", f"{path}.evaluation_metric"
        )
    return _validate(_SINGLE[type_], fields, path)


def _parse_graders(raw: Any, path: str) -> dict[str, StringCheck | TextSimilarity]:
    if raw is None:
        raise GraderError("Missing required field 'graders': an object that gives each grader a name.", path)
    if isinstance(raw, dict) and not isinstance(raw.get("type"), str):
        # Keys name the graders of this shape, so a grader in it may go without a name of its own.
        named = {key: (_with_name(each, key), f"{path}.{key}") for key, each in raw.items()}
    elif isinstance(raw, dict):
        named = _keyed_by_name([raw], [path])
    elif isinstance(raw, list):
        named = _keyed_by_name(raw, [f"{path}[{index}]" for index in range(len(raw))])
    else:
        raise GraderError(
            f"Invalid type for '{path}': expected an object that gives each grader a name, but got {kind(raw)}.", path
        )
    if not 1 <= len(named) <= MAX_GRADERS:
        raise GraderError(f"A multi grader takes 1 to {MAX_GRADERS} graders, but got {len(named)}.", path)
    return {key: _parse_member(each, where) for key, (each, where) in named.items()}


def _parse_member(raw: Any, path: str) -> StringCheck | TextSimilarity:
    fields, type_ = _fields_and_type(raw, path)
    if type_ == "multi":
        raise GraderError("A multi grader cannot contain another multi grader.", f"{path}.type")
    return _parse_single(fields, type_, path)


def _with_name(raw: Any, name: str) -> Any:
    return raw | {"name": name} if isinstance(raw, dict) and raw.get("name") is None else raw


def _keyed_by_name(graders: list[Any], paths: list[str]) -> dict[str, tuple[Any, str]]:
    named: dict[str, tuple[Any, str]] = {}
    for raw, path in zip(graders, paths, strict=True):
        if not isinstance(raw, dict):
            raise GraderError(f"Invalid type for '{path}': expected a grader object, but got {kind(raw)}.", path)
        name = raw.get("name")
        key = _slug(name) if isinstance(name, str) else ""
        if not key:
            raise GraderError("This grader needs a 'name' that the formula can use.", f"{path}.name")
        if key in named:
            raise GraderError(f"Two graders are called '{key}' in the formula; give each its own name.", f"{path}.name")
        named[key] = (raw, path)
    return named


def _slug(name: str) -> str:
    """The key of a grader called ``name``: the name itself if a formula can use it, else ``like_this``."""
    if is_variable_name(name):
        return name
    slug = re.sub(r"\W+", "_", name).strip("_").lower()
    return f"_{slug}" if slug and not is_variable_name(slug) else slug


Model = TypeVar("Model", bound=_Definition)


def _validate(model: type[Model], fields: dict[str, Any], path: str) -> Model:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # Pydantic marks an error about a key, rather than the value under it, with a last step of its own.
        param = ".".join([path, *(str(step) for step in first["loc"] if step != "[key]")])
        raise GraderError(_describe(first, model, param), param) from None


def _describe(error: ErrorDetails, model: type[BaseModel], param: str) -> str:
    last = next(step for step in reversed(error["loc"]) if step != "[key]")
    match error["type"]:
        case "missing":
            return f"Missing required field '{last}'."
        case "extra_forbidden":
            return f"Unknown field '{last}'. Fields of this grader: {', '.join(model.model_fields)}."
        case "literal_error":
            return f"Invalid value for '{last}': {_shown(error['input'])}. Allowed: {error['ctx']['expected']}."
        case "string_type":
            return f"Invalid type for '{param}': expected a string, but got {kind(error['input'])}."
        case "value_error":
            return f"Invalid '{last}': {str(error['ctx']['error']).rstrip('.')}."
        case _:
            return f"Invalid value for '{param}': {error['msg']}."


def _shown(value: Any) -> str:
    return f"'{value[:80]}'" if isinstance(value, str) else kind(value)
