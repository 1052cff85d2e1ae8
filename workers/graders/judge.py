"""What ``score_model`` and ``label_model`` share: a model that the operator offers judges, in structured output."""

import threading
import time
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

from service.contracts import strict_json
from service.graders.errors import GradeError
from service.graders.kinds.judge import Judge
from service.graders.settings import GraderSettings, origin_of
from service.graders.template import Template
from workers.graders.grading import Grade, GraderSample, SingleGrader, TokenUsage, fill
from workers.graders.http import AWAY

RETRIES = 3
TIMEOUT = 120.0
MAX_SAID = 200
_NO_KEY = "none"


class JudgeGrader(SingleGrader):
    """Raises ``OSError`` when the file of the endpoint's key cannot be read.

    Args:
        result: the JSON schema of what the judge comes to.
    """

    def __init__(self, definition: Judge, settings: GraderSettings, type_: str, result: dict[str, Any]) -> None:
        endpoint = settings.endpoint_of(definition.model)
        assert endpoint is not None, "check_allowed comes first"
        key = endpoint.api_key_file.read_text().strip() if endpoint.api_key_file is not None else _NO_KEY
        self._client = openai.OpenAI(api_key=key, base_url=endpoint.base_url, max_retries=RETRIES, timeout=TIMEOUT)
        self._requests, self._seconds = settings.model_requests, settings.batch_seconds
        self._model = definition.model
        self._where = f"'{definition.model}' at {origin_of(endpoint.base_url)}"
        self._messages = [(each.role, [Template.parse(text) for text in each.texts()]) for each in definition.input]
        self._options = {"response_format": _response_format(type_, result), **_sampling(definition)}

    @abstractmethod
    def reward(self, result: Any) -> float:
        """The reward for what the judge came to. Raises ``ValueError`` where that is nothing it was asked for."""

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        deadline, away = time.monotonic() + self._seconds, threading.Event()
        with ThreadPoolExecutor(self._requests, thread_name_prefix="judge") as pool:
            return list(pool.map(lambda sample: self._grade(sample, deadline, away), samples))

    def _grade(self, sample: GraderSample, deadline: float, away: threading.Event) -> Grade:
        """``away`` is set once the judge does not answer: the samples not asked about would only wait for nothing."""
        if away.is_set():
            return _away("The judge was not asked: it did not answer before.")
        if time.monotonic() > deadline:
            return _failed("model_grader_server_error", f"The batch was given up after {self._seconds:g} seconds.", {})
        messages: list[Any] = []
        for role, templates in self._messages:
            texts = fill(templates, sample)
            if isinstance(texts, Grade):
                return texts
            messages.append({"role": role, "content": "\n".join(texts)})
        client = self._client
        if (left := deadline - time.monotonic()) < TIMEOUT:
            # Whoever waits for the batch waits no longer than it says, however often the judge would be asked.
            client = client.with_options(timeout=max(left, 1.0), max_retries=0)
        try:
            answer = client.chat.completions.create(model=self._model, messages=messages, **self._options)
        except openai.APIStatusError as error:
            if error.status_code in AWAY:
                away.set()
                return _away(f"The judge answered with status {error.status_code} ({self._where}).")
            detail = f"The judge answered with status {error.status_code} ({self._where}){_said(error)}."
            return _failed("model_grader_server_error", detail, {})
        except openai.APIConnectionError as error:
            away.set()
            return _away(f"The judge could not be reached ({self._where}): {_cause(error)}.")
        except openai.OpenAIError as error:
            return _failed("model_grader_server_error", f"The judge could not be asked: {type(error).__name__}.", {})
        return self._read(answer)

    def _read(self, answer: Any) -> Grade:
        usage = {self._model: _usage(answer)}
        choices = getattr(answer, "choices", None)
        if not choices:
            return _failed("model_grader_server_error", "The judge answered without a choice.", usage)
        message = choices[0].message
        if getattr(message, "refusal", None):
            return _failed("model_grader_refusal_error", f"The judge refused: {str(message.refusal)[:500]}", usage)
        try:
            return Grade(self.reward(_result(message.content)), usage=usage)
        except ValueError as error:
            reason = "its answer was cut off" if choices[0].finish_reason == "length" else str(error)
            return _failed("model_grader_parse_error", f"The judge's answer has no result: {reason}.", usage)


def _said(error: openai.APIStatusError) -> str:
    """What the server said with a status, if it said it as OpenAI's API does."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return f", and says: {message.rstrip('.')[:MAX_SAID]}" if isinstance(message, str) and message else ""


def _cause(error: openai.APIConnectionError) -> str:
    if isinstance(error, openai.APITimeoutError):
        return f"no answer within {TIMEOUT:g} seconds"
    return str(error.__cause__ or error)[:MAX_SAID] or type(error).__name__


def _failed(error: GradeError, detail: str, usage: dict[str, TokenUsage]) -> Grade:
    return Grade(None, error=error, detail=detail, usage=usage)


def _away(detail: str) -> Grade:
    return Grade(None, error="model_grader_server_error", detail=detail, away=True)


def _sampling(definition: Judge) -> dict[str, Any]:
    if definition.sampling_params is None:
        return {}
    given = definition.sampling_params.model_dump(exclude_none=True)
    if "max_completions_tokens" in given:
        given["max_completion_tokens"] = given.pop("max_completions_tokens")
    return given


def _response_format(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Steps first, so that the judge thinks before it decides."""
    texts = {"description": {"type": "string"}, "conclusion": {"type": "string"}}
    step = {"type": "object", "properties": texts, "required": list(texts), "additionalProperties": False}
    fields = {"steps": {"type": "array", "items": step}, "result": result}
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


def _result(content: Any) -> Any:
    if not isinstance(content, str):
        raise ValueError("it has no text")
    try:
        value = strict_json.loads(content)
    except strict_json.InvalidJSONError as error:
        raise ValueError(f"it is not JSON, {error}") from None
    if not isinstance(value, dict) or "result" not in value:
        raise ValueError("it has no field 'result'")
    return value["result"]


def _usage(answer: Any) -> TokenUsage:
    usage = getattr(answer, "usage", None)
    details = getattr(usage, "prompt_tokens_details", None)
    return TokenUsage(
        getattr(usage, "prompt_tokens", None) or 0,
        getattr(usage, "completion_tokens", None) or 0,
        getattr(details, "cached_tokens", None) or 0,
    )
