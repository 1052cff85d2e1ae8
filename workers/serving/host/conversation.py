"""The questions that one engine is at work on, from their prompts to their last event."""

import logging
from pathlib import Path

from service.inference.wire import End, Event, Failed, Question, Started
from workers.rollouts.engine import NonFiniteLogits
from workers.serving import lines
from workers.serving.host import prompts as making
from workers.serving.host.engine import Engine, Key, Refused, Request
from workers.serving.host.vocabulary import Vocabulary
from workers.serving.host.writer import Writer

log = logging.getLogger(__name__)


class Conversations:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._vocabulary = Vocabulary(engine.tokenizer)
        self._writers: dict[str, dict[int, Writer]] = {}
        """The choices that are not complete, by question."""

    @property
    def busy(self) -> bool:
        return self._engine.busy

    def take(self, line: lines.Ask | lines.Forget) -> list[lines.Said]:
        if isinstance(line, lines.Forget):
            self._forget(line.forget)
            return []
        return [lines.Said(id=line.ask.id, events=[self._begin(line.ask)])]

    def step(self) -> list[lines.Said]:
        """What the next token of each choice makes certain. Failures that end the engine end the process."""
        try:
            tokens = self._engine.step()
        except NonFiniteLogits as error:
            return self._fail_all("non_finite_logits", f"{error} The model is beyond repair.")
        said: dict[str, list[Event]] = {}
        for token in tokens:
            writers = self._writers.get(token.key.question, {})
            writer = writers.get(token.key.choice)
            if writer is None:
                continue
            events = writer.take(token)
            said.setdefault(token.key.question, []).extend(events)
            if events and isinstance(events[-1], End):
                del writers[token.key.choice]
                if token.end is None:
                    self._engine.drop([token.key])
        self._writers = {id: writers for id, writers in self._writers.items() if writers}
        return [lines.Said(id=id, events=events) for id, events in said.items() if events]

    def _begin(self, question: Question) -> Event:
        try:
            prompts = making.prompts(question, self._engine)
            adapter = None if question.adapter_path is None else Path(question.adapter_path)
            n = question.sampling.n
            writers: dict[int, Writer] = {}
            for number, prompt in enumerate(prompts):
                manner = making.manner(question, prompt, self._vocabulary)
                keys = [Key(question.id, number * n + choice) for choice in range(n)]
                most = making.max_tokens(question, prompt, self._engine)
                reasons = manner.reasoning == "open"
                self._engine.add(Request(keys, prompt, question.sampling, most, adapter, reasons))
                writers |= {key.choice: Writer(key.choice, self._vocabulary, manner) for key in keys}
        except Refused as error:
            self._engine.drop([Key(question.id, choice) for choice in range(question.choices)])
            return Failed(status=400, code=error.code, message=error.message, param=error.param)
        self._writers[question.id] = writers
        texts = [
            prompt if isinstance(prompt, str) else str(self._engine.tokenizer.decode(prompt))
            for prompt in question.prompts
        ]
        return Started(prompt_tokens=sum(map(len, prompts)), prompts=texts)

    def _forget(self, id: str) -> None:
        writers = self._writers.pop(id, {})
        self._engine.drop([Key(id, choice) for choice in writers])

    def _fail_all(self, code: str, message: str) -> list[lines.Said]:
        log.error("%s", message)
        failed = Failed(status=500, code=code, message=message)
        said = [lines.Said(id=id, events=[failed]) for id in self._writers]
        for id in list(self._writers):
            self._forget(id)
        return said
