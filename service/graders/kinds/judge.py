"""What ``score_model`` and ``label_model`` share: a model that the operator offers is asked."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from service.contracts.strict_json import kind
from service.graders.definition import Fault, Frozen, GraderDefinition, GraderName
from service.graders.settings import GraderSettings
from service.graders.template import Template

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


class InputMessage(Frozen):
    """One message of the prompt of a judge."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Any, AfterValidator(_check_content)]
    type: Literal["message"] | None = None

    def texts(self) -> list[str]:
        """The templates of its content, in order."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return [part if isinstance(part, str) else part["text"] for part in parts]


class SamplingParams(Frozen):
    """How a judge samples. ``max_completions_tokens`` is spelled as in OpenAI's API."""

    seed: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class Judge(GraderDefinition):
    asks_others = True

    name: GraderName
    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Annotated[list[InputMessage], Field(min_length=1, max_length=100)]
    sampling_params: SamplingParams | None = None

    @property
    def judge(self) -> str:
        return self.model

    def templates(self) -> list[str]:
        return [text for message in self.input for text in message.texts()]

    def refused(self, settings: GraderSettings, organization_id: str | None) -> Fault | None:
        if settings.endpoint_of(self.model) is not None:
            return None
        offered = [model for endpoint in settings.model_endpoints for model in endpoint.models]
        known = f"Models offered: {', '.join(offered)}." if offered else "This server offers none."
        return Fault("model", f"The model '{self.model[:80]}' is not offered as a grader. {known}")
