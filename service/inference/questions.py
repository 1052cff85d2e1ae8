"""From request bodies to questions for a serving worker. Each refusal names the field it is about."""

import secrets
from typing import Any

from pydantic_core import PydanticSerializationError

from service.accounts.service import is_default
from service.contracts import chat_template
from service.core.db import Owner
from service.core.errors import invalid
from service.inference import bounds
from service.inference.requests import MAX_CHOICES, ChatRequest, CompletionRequest, SamplingRequest
from service.inference.weights import Served
from service.inference.wire import Chat, Question, Sampling

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for completions, which would otherwise go on to the end of the context."""


def of_chat(id: str, owner: Owner, served: Served, body: ChatRequest) -> Question:
    """Raises a 400 for combinations that are not served."""
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("'top_logprobs' is allowed only with 'logprobs': true.", "top_logprobs")
    if body.tools and body.response_format is not None and body.response_format.type != "text":
        raise invalid("'response_format' cannot be combined with 'tools'.", "response_format")
    given = (body.max_tokens, body.max_completion_tokens)
    if None not in given and given[0] != given[1]:
        raise invalid("'max_tokens' is the old name of 'max_completion_tokens'; give one of them.", "max_tokens")
    sampling = _sampling(
        body,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        json_schema=_json_schema(body),
    )
    for number, tool in enumerate(body.tools or []):
        bounds.check(tool.function.parameters or {}, f"tools.{number}.function.parameters")
    values, effort = body.chat_template_kwargs or {}, body.reasoning_effort
    wrong = chat_template.fault(values)
    if wrong is not None:
        raise invalid(f"Invalid value for 'chat_template_kwargs': {wrong}.", "chat_template_kwargs")
    offered = body.tools if body.tools and body.tool_choice != "none" else []
    chat = Chat(
        messages=[message.model_dump(mode="json", exclude_none=True) for message in body.messages],
        tools=[tool.model_dump(mode="json", exclude_none=True) for tool in offered],
        parallel_tool_calls=body.parallel_tool_calls is not False,
        template_values=values,
        template_defaults=served.template_values | ({} if effort is None else {"reasoning_effort": effort}),
    )
    return _question(id, owner, served, sampling, stream=bool(body.stream), chat=chat)


def of_completion(id: str, owner: Owner, served: Served, body: CompletionRequest) -> Question:
    """Raises a 400 for combinations that are not served."""
    if body.best_of not in (None, body.n or 1):
        raise invalid("'best_of' other than 'n' is not served; choose among 'n' choices yourself.", "best_of")
    if body.echo and body.logprobs is not None:
        raise invalid("'echo' with 'logprobs' is not served: a prompt's tokens are not scored.", "echo")
    prompts: Any = body.prompt
    if isinstance(prompts, str) or isinstance(prompts[0], int):
        prompts = [prompts]
    if len(prompts) * (body.n or 1) > MAX_CHOICES:
        raise invalid(f"This asks for more than {MAX_CHOICES} choices, prompts times 'n'.", "n")
    sampling = _sampling(
        body, max_tokens=body.max_tokens or DEFAULT_COMPLETION_TOKENS, logprobs=body.logprobs, json_schema=None
    )
    return _question(id, owner, served, sampling, stream=bool(body.stream), prompts=prompts)


def _question(id: str, owner: Owner, served: Served, sampling: Sampling, *, stream: bool, **prompt: Any) -> Question:
    question = Question(
        id=id,
        model=served.model,
        model_path=str(served.folder),
        adapter_path=None if served.adapter is None else str(served.adapter),
        sampling=sampling,
        organization=owner.organization_id,
        project=None if is_default(owner) else owner.project_id,
        stream=stream,
        **prompt,
    )
    try:
        question.model_dump_json()
    except PydanticSerializationError as error:
        raise invalid("The request holds text that is no valid Unicode.", None) from error
    return question


def _sampling(
    body: SamplingRequest, max_tokens: int | None, logprobs: int | None, json_schema: dict[str, Any] | None
) -> Sampling:
    if body.stream_options is not None and not body.stream:
        raise invalid("'stream_options' is allowed only with 'stream': true.", "stream_options")
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=secrets.randbits(63) if body.seed is None else body.seed % 2**63,
        n=body.n or 1,
        max_tokens=max_tokens,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop or [],
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
        logprobs=logprobs,
        json_schema=json_schema,
    )


def _json_schema(body: ChatRequest) -> dict[str, Any] | None:
    schema = None if body.response_format is None else body.response_format.schema_
    if schema is not None:
        bounds.check(schema, "response_format.json_schema.schema")
    return schema
