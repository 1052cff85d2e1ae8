"""Making a question ready for its model: its messages become one text, and its schema is tried.

Both are done in bounds by ``workers.bounded``, so that no question reaches a model's process which that would not
survive. An organisation has ``SLOTS`` of its questions made ready at a time, others wait for these alone.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from service.contracts import chat_template
from service.inference.wire import Chat, Failed, Question
from workers.bounded import client, messages
from workers.bounded.tasks import HERE, Compile, Names, Render, Task, TaskResult, exceeded
from workers.serving.lines import Ready

SLOTS = 2
MAX_CHARACTERS = 2 << 20
"""Longest prompt; a request's body is shorter."""
ANSWER_SECONDS = 20.0
"""The kernel counts the seconds of a processor; this is for a machine that hardly gives it any."""
LONGEST_ANSWER = 64 << 20


class PreparationError(Exception):
    """The question cannot be asked; ``failed`` is what its reader is told."""

    def __init__(
        self, message: str, param: str | None = None, *, code: str = "invalid_value", status: int = 400
    ) -> None:
        super().__init__(message)
        self.failed = Failed(status=status, code=code, message=message, param=param)


class Preparation:
    def __init__(self) -> None:
        self._server = client.Server()
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._users: dict[str, int] = {}

    def start(self) -> None:
        self._server.start()

    def close(self) -> None:
        self._server.close()

    async def learn(self, model: Ready) -> None:
        """Have a loaded model's templates at hand."""
        for template in {model.chat_template, model.tools_template} - {None}:
            assert template is not None
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._server.learn, template)

    @contextlib.asynccontextmanager
    async def slot(self, organization: str) -> AsyncIterator[None]:
        """One of the organisation's own."""
        slots = self._slots.setdefault(organization, asyncio.Semaphore(SLOTS))
        self._users[organization] = self._users.get(organization, 0) + 1
        try:
            async with slots:
                yield
        finally:
            self._users[organization] -= 1
            if not self._users[organization]:
                del self._users[organization], self._slots[organization]

    async def text(self, question: Question, model: Ready) -> str | None:
        """What the model is shown of a chat; None of texts that are continued. Raises ``PreparationError``.

        Cancelling it ends what is at work on it.
        """
        tasks: list[Task] = []
        schema = question.sampling.json_schema
        if schema is not None:
            tasks.append(Compile(kind="compile", schema=schema))
        plain = None
        if question.chat is not None:
            written = _rendering(question.chat, model)
            if isinstance(written, str):
                plain = written
            else:
                if question.chat.template_values:
                    tasks.append(Names(kind="names", template=written["template"]))
                tasks.append(written)
        if not tasks:
            return plain
        answers = await self._run(tasks)
        for task, answer in zip(tasks, answers, strict=False):
            refused = answer.get("refused")
            if refused is not None and task["kind"] == "compile":
                message = f"This JSON schema is not supported: {refused}."
                raise PreparationError(message, "response_format", code="invalid_json_schema")
            if refused is not None:
                raise PreparationError(f"{_capitalized(refused)}.", "messages")
            if task["kind"] == "names":
                _check_values(question.chat, model, set(answer["names"]))
        return answers[-1].get("text", plain)

    async def _run(self, tasks: Sequence[Task]) -> list[TaskResult]:
        """The answers up to the first task that exceeds its bounds."""
        for _ in range(client.TRIES):
            name, connection = self._server.begin()
            reader, writer = await asyncio.open_connection(sock=connection, limit=LONGEST_ANSWER)
            received = b""
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    with contextlib.suppress(ConnectionError):
                        writer.write(json.dumps(tasks).encode())
                        writer.write_eof()
                        received = await reader.read()
            except TimeoutError:
                message = "The machine is too busy to read the request. Try again shortly."
                raise PreparationError(message, code="overloaded", status=503) from None
            finally:
                # Nothing, when it has ended by itself.
                self._server.kill(name)
                writer.close()
            if received.startswith(HERE):
                answers = client.read(received)
                return answers if len(answers) == len(tasks) else [*answers, exceeded(tasks[len(answers)])]
        message = "The process that reads requests does not start. The serving worker's log says more."
        raise PreparationError(message, code="overloaded", status=503)


def _rendering(chat: Chat, model: Ready) -> Render | str:
    """What has to be rendered, or the text where the model has no chat template. Raises ``PreparationError``."""
    if chat.tools and not model.can_call:
        raise PreparationError("This model's chat template knows no tool calls that can be told from text.", "tools")
    template = model.tools_template if chat.tools else model.chat_template
    try:
        known = messages.for_template([_with_content(message) for message in chat.messages], template)
    except messages.UnusableMessageError as error:
        raise PreparationError(f"{_capitalized(str(error))}.", "messages") from error
    if template is None:
        _check_values(chat, model, set())
        return messages.joined(known)
    return Render(
        kind="render",
        template=template,
        special_tokens=model.special_tokens,
        messages=known,
        tools=chat.tools or None,
        answer_next=True,
        most=MAX_CHARACTERS,
        values=chat.template_defaults | chat.template_values,
        now=None,
    )


def _check_values(chat: Chat | None, model: Ready, names: set[str]) -> None:
    """Raises ``PreparationError`` where the template, which reads ``names``, is told what it never looks at."""
    assert chat is not None
    wrong = chat_template.unread(chat.template_values, names - model.special_tokens.keys())
    if wrong is not None:
        raise PreparationError(f"{_capitalized(wrong)}.", "chat_template_kwargs")


def _with_content(message: dict[str, Any]) -> dict[str, Any]:
    """A message as templates expect it, which look for content; a call's arguments, OpenAI's text, have to be JSON."""
    for call in message.get("tool_calls", []):
        try:
            json.loads(call["function"]["arguments"] or "{}")
        except (ValueError, RecursionError) as error:
            raise PreparationError("A tool call's arguments are not JSON.", "messages") from error
    return {"content": None} | message


def _capitalized(reason: str) -> str:
    return reason[:1].upper() + reason[1:]
