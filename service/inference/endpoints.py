"""``/v1/chat/completions``, ``/v1/completions`` and ``/v1/responses``"""

from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from service.accounts.caller import Recognized, Route, identified
from service.accounts.known import Principal
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
from service.inference.shapes import Answer
from service.inference.wire import Question
from service.usage import service as usage

T = TypeVar("T")

router = APIRouter(prefix="/v1", tags=["inference"], route_class=Route)

STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": FRAME}}}}
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": EVENT}}}}


@router.post("/chat/completions", response_model=ChatCompletion, responses=STREAM)
async def chat_completions(recognized: Recognized, request: Request, body: ChatRequest) -> Any:
    """Continue a conversation with a base model, a tuned model or a checkpoint."""
    served = await identified(recognized, _admitted, recognized.organization_id, body.model)
    question = questions.of_chat(new_id("chatcmpl-"), recognized.organization_id, served, body)
    answer = Answer(question)
    if body.stream:
        usage = _usage(answer, body, "chat.completion.chunk")
        return await _stream(question, recognized, AsChunks(answer, answer.chat_chunks, usage), request)
    await _whole(question, recognized, answer, request)
    return answer.chat()


@router.post("/completions", response_model=Completion, responses=STREAM)
async def completions(recognized: Recognized, request: Request, body: CompletionRequest) -> Any:
    """Continue texts as they are, without a chat template."""
    served = await identified(recognized, _admitted, recognized.organization_id, body.model)
    question = questions.of_completion(new_id("cmpl-"), recognized.organization_id, served, body)
    answer = Answer(question, echo=bool(body.echo))
    if body.stream:
        usage = _usage(answer, body, "text_completion")
        return await _stream(question, recognized, AsChunks(answer, answer.completion_chunks, usage), request)
    await _whole(question, recognized, answer, request)
    return answer.completion()


@router.post("/responses", response_model=ResponseObject, responses=EVENTS)
async def responses(recognized: Recognized, request: Request, body: ResponseRequest) -> Any:
    """Answer a text, or a conversation of messages and function calls. Nothing of it is stored."""
    with renamed():
        served = await identified(recognized, _admitted, recognized.organization_id, body.model)
        question = questions.of_chat(new_id("resp_"), recognized.organization_id, served, as_chat(body))
        response = Response(question.id, body)
        if body.stream:
            return await _stream(question, recognized, AsEvents(response), request)
        await _whole(question, recognized, response, request)
        return response.object


def _admitted(session: Session, organization_id: str, model: str) -> weights.Served:
    """What answers for ``model``, if the organisation has tokens left."""
    usage.check_chat_tokens(session, organization_id)
    return weights.find(session, model)


async def _whole(question: Question, caller: Principal, answer: Answer | Response, request: Request) -> None:
    await _unless_gone(service.whole(question, caller.key_id, answer), request)


async def _stream(question: Question, caller: Principal, written: Written, request: Request) -> StreamingResponse:
    events, heard = await _unless_gone(service.begin(question, caller.key_id), request)
    return sse.response(service.frames(events, heard, written))


async def _unless_gone(work: Coroutine[Any, Any, T], request: Request) -> T:
    try:
        # The body has been read, so that all that can still be received is that the client has hung up.
        return await service.unless_gone(work, request.receive)
    except service.ClientDisconnectedError as error:
        # Nobody reads this; the log says what became of the request.
        raise DomainError(499, "client_closed_request", "The client hung up.") from error


def _usage(answer: Answer, body: ChatRequest | CompletionRequest, kind: Any) -> Any:
    wanted = body.stream_options is not None and body.stream_options.include_usage
    return (lambda: answer.usage_chunk(kind)) if wanted else None
