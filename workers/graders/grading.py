"""What goes into a grader and what comes out, ``GraderSample`` and ``Grade``, and the templates filled between them."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

from service.contracts import strict_json
from service.graders.definition import MAX_REWARD, OUTPUT_TEXT, Fault
from service.graders.errors import GradeError
from service.graders.settings import GraderSettings
from service.graders.template import MissingVariableError, Template, TooLongError

MAX_EXTRACTED = 1000
"""Characters of an answer that are kept to be compared with others'."""
_FENCE = re.compile(r"[ \t]*```[ \t]*(json)?[ \t]*\r?\n?", re.IGNORECASE)
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def _fenced(text: str) -> list[str]:
    """What stands in fences that say that it is JSON, or nothing; in time that grows with the text and no faster."""
    blocks: list[str] = []
    lines = text.split("\n")
    begun: int | None = None
    for number, line in enumerate(lines):
        fence = _FENCE.fullmatch(line)
        if fence is None:
            continue
        if begun is None:
            begun = number + 1
        elif not fence[1]:
            blocks.append("\n".join(lines[begun:number]))
            begun = None
    return blocks


class SampleNotJSONError(Exception):
    """A template asks for the answer as JSON and the answer is not JSON."""


@dataclass(frozen=True)
class GraderSample:
    """An answer to grade. ``item`` is the whole dataset row, ``output_text`` what the model said."""

    item: dict[str, Any]
    output_text: str

    @cached_property
    def output_json(self) -> Any:
        """The answer parsed as JSON, or the last fenced block of JSON in it. Raises ``SampleNotJSONError``."""
        try:
            return strict_json.loads(self.output_text)
        except strict_json.InvalidJSONError as error:
            for block in reversed(_fenced(self.output_text)):
                with suppress(strict_json.InvalidJSONError):
                    return strict_json.loads(block)
            raise SampleNotJSONError(f"the answer is not JSON: {error}") from None

    @cached_property
    def output_tools(self) -> list[dict[str, Any]]:
        """The tool calls in the answer, in the notation of Hermes and Qwen, as the hosted API gives them."""
        calls: list[dict[str, Any]] = []
        for text in _CALL.findall(self.output_text):
            with suppress(strict_json.InvalidJSONError):
                call = strict_json.loads(text)
                if isinstance(call, dict) and isinstance(call.get("name"), str):
                    arguments = json.dumps(call.get("arguments", {}), ensure_ascii=False)
                    function = {"name": call["name"], "arguments": arguments}
                    calls.append({"id": f"call_{len(calls)}", "type": "function", "function": function})
        return calls

    def as_object(self) -> dict[str, Any]:
        """The sample as code and scoring services get it; ``output_json`` is None for an answer that is not JSON."""
        try:
            output_json = self.output_json
        except SampleNotJSONError:
            output_json = None
        calls = self.output_tools
        message: dict[str, Any] = {"role": "assistant", "content": self.output_text}
        return {
            "output_text": self.output_text,
            "output_json": output_json,
            "output_tools": calls,
            "choices": [{"index": 0, "message": message | ({"tool_calls": calls} if calls else {})}],
        }


@dataclass(frozen=True)
class TokenUsage:
    """Tokens that a judge used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: "TokenUsage") -> "TokenUsage":
        return TokenUsage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


def total(usages: Iterable[Mapping[str, TokenUsage]]) -> dict[str, TokenUsage]:
    """The sums of each name."""
    sums: dict[str, TokenUsage] = {}
    for usage in usages:
        for name, used in usage.items():
            sums[name] = sums.get(name, TokenUsage()) + used
    return sums


@dataclass(frozen=True)
class Grade:
    """A reward, or the reason why there is none. Exactly one of ``reward`` and ``error`` is None.

    ``sub_rewards`` and ``sub_errors`` are a multi grader's, by key; each key is in one of the two. ``sample_at_fault``
    says that the answer lacks what the grader reads (no JSON, a field missing in it), ``raised`` that the grader's own
    code or formula failed on this answer, as it would again. Either earns the least reward; otherwise what failed was a
    row, or a jail, judge or service, and nothing is known of the answer. ``usage`` is what judges used for this sample,
    by model, whether or not they came to a reward, and ``sub_usage`` the same by key of a multi grader. ``away`` says
    that a server did not answer, and that the same sample may be graded later. ``extracted`` is the answer proper, as
    the grader read it out of the text; None where it takes the text as a whole, or found none.
    """

    reward: float | None
    sub_rewards: dict[str, float] = field(default_factory=dict)
    error: GradeError | None = None
    detail: str | None = None
    sub_errors: dict[str, GradeError] = field(default_factory=dict)
    sample_at_fault: bool = False
    usage: dict[str, TokenUsage] = field(default_factory=dict)
    raised: bool = False
    away: bool = False
    sub_usage: dict[str, TokenUsage] = field(default_factory=dict)
    extracted: str | None = field(default=None, compare=False)

    def after(self, earlier: "Grade") -> "Grade":
        """This grade of a sample that was graded before, with what judges used then."""
        return replace(
            self, usage=total([earlier.usage, self.usage]), sub_usage=total([earlier.sub_usage, self.sub_usage])
        )

    @property
    def earns_least(self) -> bool:
        """Whether the answer has no reward of its own and counts with the least that the grader gives."""
        return self.reward is None and (self.sample_at_fault or self.raised)


class Grader(Protocol):
    """Grades a batch of samples; ``grades[i]`` is that of ``samples[i]``. Never raises for what a sample contains."""

    def grade(self, samples: list[GraderSample]) -> list[Grade]: ...


class SingleGrader(ABC):
    """A grader of one kind, made of its definition and what the operator allows.

    ``workers.graders.registry`` lists them.
    """

    batch_size: ClassVar[int] = 1
    """How many samples a batch should have, if they can be had, for what a batch costs by itself to be small."""

    @abstractmethod
    def __init__(self, definition: Any, settings: GraderSettings) -> None:
        """Raises ``JailError`` where no jail holds that it needs, ``OSError`` where a key or secret cannot be read."""

    @abstractmethod
    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        """As ``Grader`` does."""

    @staticmethod
    def fault(definition: Any, settings: GraderSettings) -> Fault | None:
        """What keeps code of its own from being loaded, where it has any. Raises ``JailError`` where no jail holds."""
        return None


def fill(templates: Sequence[Template], sample: GraderSample) -> list[str] | Grade:
    """The texts that ``templates`` make of ``sample``, or the grade of a sample that lacks what they name."""
    try:
        return [_fill(template, sample) for template in templates]
    except SampleNotJSONError as error:
        return Grade(None, error="sample_parse_error", detail=str(error), sample_at_fault=True)
    except MissingVariableError as error:
        at_fault = error.reference.namespace == "sample"
        return Grade(None, error="invalid_variable_error", detail=str(error), sample_at_fault=at_fault)
    except TooLongError as error:
        return Grade(None, error="other_error", detail=str(error))


def _fill(template: Template, sample: GraderSample) -> str:
    known: dict[str, Any] = {"output_text": sample.output_text, "output_tools": sample.output_tools}
    if template.needs_json:
        known["output_json"] = sample.output_json
    return template.render(item=sample.item, sample=known)


def limited(grade: Grade, name: str, error: GradeError, *, raised: bool) -> Grade:
    """``grade``, or where its reward is beyond ``MAX_REWARD`` a failure of the grader ``name``.

    ``raised`` says whether of the grader's own code.
    """
    if grade.reward is None or abs(grade.reward) <= MAX_REWARD:
        return grade
    detail = (
        f"The grader '{name}' gave {grade.reward:g}; rewards must be finite numbers from {-MAX_REWARD:,.0f} "
        f"to {MAX_REWARD:,.0f}."
    )
    return replace(grade, reward=None, error=error, detail=detail, raised=raised)


def _reads_a_part(template: Template) -> bool:
    """Whether a template reads the answer, and not just the whole of its text."""
    return str(template) != OUTPUT_TEXT and any(each.namespace == "sample" for each in template.paths)


class Comparison:
    """A score of two texts that templates make of each sample."""

    def __init__(self, input: str, reference: str, score: Callable[[str, str], float]) -> None:
        self._templates = (Template.parse(input), Template.parse(reference))
        self._answers = [n for n, each in enumerate(self._templates) if _reads_a_part(each)]
        self._score = score

    def grade(self, sample: GraderSample) -> Grade:
        texts = fill(self._templates, sample)
        if isinstance(texts, Grade):
            return texts
        try:
            extracted = texts[self._answers[0]][:MAX_EXTRACTED].strip() if self._answers else None
            return Grade(self._score(*texts), extracted=extracted)
        except TooLongError as error:
            return Grade(None, error="other_error", detail=str(error), raised=True)
