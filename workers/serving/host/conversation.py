"""The questions that one engine is at work on, from their prompts to their last event."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from service.inference.wire import HOLD_SECONDS, End, Event, Failed, Question, Started, merged
from workers.rollouts.engine import NonFiniteLogitsError
from workers.serving import lines
from workers.serving.host import prompts as making
from workers.serving.host.engine import Engine, Key, Request, RequestRefusedError
from workers.serving.host.vocabulary import Vocabulary
from workers.serving.host.writer import Writer

READERS = 8
"""Questions that are read at a time; the worker gives each organisation two."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Read:
    """A question that was read: what the engine is to be asked, or why it cannot be."""

    question: Question
    requests: list[Request]
    writers: dict[int, Writer]
    failed: Failed | None = None


@dataclass
class Held:
    """Events of an answer that is not streamed, and since when they are kept."""

    since: float
    events: list[Event] = field(default_factory=list)
    noticed: bool = False
    """Whether the worker knows that there are any."""

    def take(self, events: list[Event], now: float) -> list[Event] | None:
        """What is to be told now, if anything."""
        self.events = merged([*self.events, *events])
        if isinstance(self.events[-1], End | Failed) or now - self.since >= HOLD_SECONDS:
            told, self.events, self.since = self.events, [], now
            return told
        if self.noticed:
            return None
        self.noticed = True
        return []


class Conversations:
    """What ``take`` is given is read in other threads, beside the steps of what runs, and comes back to ``admit``.

    Args:
        back: takes what was read, in any thread.
    """

    def __init__(self, engine: Engine, back: Callable[[Read], None]) -> None:
        self._engine, self._back = engine, back
        self._vocabulary = Vocabulary(engine.tokenizer)
        self._readers = ThreadPoolExecutor(READERS)
        self._reading: set[str] = set()
        self._writers: dict[str, dict[int, Writer]] = {}
        """The choices that are not complete, by question."""
        self._held: dict[str, Held] = {}

    @property
    def busy(self) -> bool:
        return self._engine.busy

    def take(self, line: lines.Ask | lines.Forget) -> None:
        if isinstance(line, lines.Forget):
            self._forget(line.forget)
            return
        self._reading.add(line.ask.id)
        self._readers.submit(lambda: self._back(self._read(line.ask, line.text)))

    def admit(self, read: Read) -> list[lines.QuestionEvents]:
        """Have the engine begin with what was read."""
        id = read.question.id
        if id not in self._reading:
            return []
        self._reading.remove(id)
        return [lines.QuestionEvents(id=id, events=[self._begin(read)])]

    def step(self) -> list[lines.QuestionEvents]:
        """What the next token of each choice makes certain. Failures that end the engine end the process."""
        try:
            tokens = self._engine.step()
        except NonFiniteLogitsError as error:
            return self._fail_all("non_finite_logits", f"{error} The model is beyond repair.")
        events_by_id: dict[str, list[Event]] = {}
        for token in tokens:
            id = token.key.question
            writer = self._writers.get(id, {}).get(token.key.choice)
            if writer is None:
                continue
            if token.error is not None:
                events_by_id[id] = [
                    Failed(status=400, code="invalid_json_schema", message=token.error, param="response_format")
                ]
                self._forget(id)
                continue
            events = writer.take(token)
            events_by_id.setdefault(id, []).extend(events)
            if events and isinstance(events[-1], End):
                del self._writers[id][token.key.choice]
                if token.end is None:
                    self._engine.drop([token.key])
        told = [each for id, events in events_by_id.items() if events for each in self._tell(id, events)]
        self._writers = {id: writers for id, writers in self._writers.items() if writers}
        self._held = {id: held for id, held in self._held.items() if id in self._writers}
        return told

    def _tell(self, id: str, events: list[Event]) -> list[lines.QuestionEvents]:
        held = self._held.get(id)
        told = events if held is None else held.take(events, time.monotonic())
        return [] if told is None else [lines.QuestionEvents(id=id, events=told)]

    def _read(self, question: Question, text: str | None) -> Read:
        read = Read(question, [], {})
        try:
            prompts = making.prompts(question, text, self._engine)
            adapter = None if question.adapter_path is None else Path(question.adapter_path)
            n = question.sampling.n
            for number, prompt in enumerate(prompts):
                output_format = making.output_format(question, prompt)
                keys = [Key(question.id, number * n + choice) for choice in range(n)]
                most = making.max_tokens(question, prompt, self._engine)
                grammar = self._engine.grammar(question.sampling, prompt)
                request = Request(
                    keys,
                    prompt,
                    question.sampling,
                    most,
                    adapter,
                    grammar,
                    organization=question.organization,
                    tenant=question.tenant,
                )
                read.requests.append(request)
                read.writers.update({key.choice: Writer(key.choice, self._vocabulary, output_format) for key in keys})
        except RequestRefusedError as error:
            return Read(question, [], {}, _failed(error))
        except Exception as error:
            log.exception("%s cannot be read", question.id)
            message = f"The model's process could not read the request: {type(error).__name__}. Its log says more."
            return Read(question, [], {}, Failed(status=500, code="internal_error", message=message))
        return read

    def _begin(self, read: Read) -> Event:
        if read.failed is not None:
            return read.failed
        question = read.question
        try:
            for request in read.requests:
                self._engine.add(request)
        except RequestRefusedError as error:
            self._engine.drop([Key(question.id, choice) for choice in range(question.choices)])
            return _failed(error)
        self._writers[question.id] = read.writers
        if not question.stream:
            self._held[question.id] = Held(time.monotonic())
        texts = [
            prompt if isinstance(prompt, str) else str(self._engine.tokenizer.decode(prompt))
            for prompt in question.prompts
        ]
        return Started(prompt_tokens=sum(len(request.prompt) for request in read.requests), prompts=texts)

    def _forget(self, id: str) -> None:
        self._reading.discard(id)
        writers = self._writers.pop(id, {})
        self._engine.drop([Key(id, choice) for choice in writers])

    def _fail_all(self, code: str, message: str) -> list[lines.QuestionEvents]:
        log.error("%s", message)
        failed = Failed(status=500, code=code, message=message)
        messages = [lines.QuestionEvents(id=id, events=[failed]) for id in self._writers]
        for id in list(self._writers):
            self._forget(id)
        return messages


def _failed(refused: RequestRefusedError) -> Failed:
    return Failed(status=400, code=refused.code, message=refused.message, param=refused.param)
