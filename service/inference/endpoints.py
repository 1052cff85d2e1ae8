"""``/v1/chat/completions``, ``/v1/completions`` and ``/v1/responses``"""

import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.accounts.caller import Recognized, Route, identified
from service.accounts.known import Principal
from service.accounts.scopes import needs
from service.core import sse
from service.core.errors import DomainError
from service.core.ids import new_id
from service.inference import questions, service, weights
from service.inference.answers import FRAME, ChatCompletion, Completion
from service.inference.requests import ChatRequest, CompletionRequest
from service.inference.responses.answers import EVENT, ResponseObject
from service.inference.responses.requests import ResponseRequest, as_chat, renamed
from service.inference.responses.shapes import Response
from service.inference.service import AsChunks, AsEvents, Written
from service.inference.shapes import AnswerBuilder
from service.inference.wire import Question
from service.usage import service as usage

T = TypeVar("T")

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1", tags=["inference"], route_class=Route)

STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": FRAME}}}}
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": EVENT}}}}


@router.post("/chat/completions", response_model=ChatCompletion, responses=STREAM)
@needs("submit")
async def chat_completions(recognized: Recognized, request: Request, body: ChatRequest) -> Any:
    """Continue a conversation with a base model, a tuned model or a checkpoint."""
    served = await identified(recognized, _admitted, recognized.organization_id, body.model)
    question = questions.of_chat(new_id("chatcmpl-"), recognized, served, body)
    answer = AnswerBuilder(question)
    if body.stream:
        usage = _usage(answer, body, "chat.completion.chunk")
        return await _stream(question, recognized, AsChunks(answer, answer.chat_chunks, usage), request)
    await _whole(question, recognized, answer, request)
    return answer.chat()


@router.post("/completions", response_model=Completion, responses=STREAM)
@needs("submit")
async def completions(recognized: Recognized, request: Request, body: CompletionRequest) -> Any:
    """Continue texts as they are, without a chat template."""
    served = await identified(recognized, _admitted, recognized.organization_id, body.model)
    question = questions.of_completion(new_id("cmpl-"), recognized, served, body)
    answer = AnswerBuilder(question, echo=bool(body.echo))
    if body.stream:
        usage = _usage(answer, body, "text_completion")
        return await _stream(question, recognized, AsChunks(answer, answer.completion_chunks, usage), request)
    await _whole(question, recognized, answer, request)
    return answer.completion()


@router.post("/responses", response_model=ResponseObject, responses=EVENTS)
@needs("submit")
async def responses(recognized: Recognized, request: Request, body: ResponseRequest) -> Any:
    """Answer a text, or a conversation of messages and function calls. Nothing of it is stored."""
    with renamed():
        served = await identified(recognized, _admitted, recognized.organization_id, body.model)
        question = questions.of_chat(new_id("resp_"), recognized, served, as_chat(body))
        response = Response(question.id, body)
        if body.stream:
            return await _stream(question, recognized, AsEvents(response), request)
        await _whole(question, recognized, response, request)
        return response.object


def _admitted(session: Session, organization_id: str, model: str) -> weights.Served:
    """What answers for ``model``, if the organisation has tokens left."""
    usage.check_chat_tokens(session, organization_id)
    return weights.find(session, model)


async def _whole(question: Question, caller: Principal, answer: AnswerBuilder | Response, request: Request) -> None:
    await _unless_gone(service.whole(question, caller.key_id, partial(_still_allowed, caller), answer), request)


async def _stream(question: Question, caller: Principal, written: Written, request: Request) -> StreamingResponse:
    events, heard = await _unless_gone(service.begin(question, caller.key_id, partial(_still_allowed, caller)), request)
    return sse.response(service.frames(events, heard, written))


async def _still_allowed(caller: Principal) -> None:
    """Raises a 401 or a 403 where the key that began this may do it no more; no answer is not taken for one."""
    try:
        await identified(caller, lambda session: None)
    except DomainError as error:
        if error.status in (401, 403):
            raise
    except SQLAlchemyError as error:
        log.warning("it is not known whether a key is still good: %s", error)


async def _unless_gone(work: Coroutine[Any, Any, T], request: Request) -> T:
    try:
        # The body has been read, so that all that can still be received is that the client has hung up.
        return await service.unless_gone(work, request.receive)
    except service.ClientDisconnectedError as error:
        # Nobody reads this; the log says what became of the request.
        raise DomainError(499, "client_closed_request", "The client hung up.") from error


def _usage(answer: AnswerBuilder, body: ChatRequest | CompletionRequest, kind: Any) -> Any:
    wanted = body.stream_options is not None and body.stream_options.include_usage
    return (lambda: answer.usage_chunk(kind)) if wanted else None
