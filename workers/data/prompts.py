"""From rows of a JSONL file to prompts of token ids, and which rows a step trains on.

The order is a permutation for each epoch that follows from the seed alone, so the position in the data is the step.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from service import chat_template
from service.jobs.spec import Hyperparameters, SupervisedHyperparameters
from workers.bounded import client, messages
from workers.bounded.tasks import MAX_CHARACTERS, Names, Render
from workers.modeling import seeds
from workers.training.errors import RunError

MAX_ROWS_NAMED = 20
BATCH_ROWS = 256
BATCH_BYTES = 1 << 20
"""Rows that are rendered and encoded together end with the one that reaches either number."""


@dataclass(frozen=True)
class Rendering:
    """What a job tells the chat template, whatever the row."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """By the names under which the template reads them."""
    now: datetime | None = None
    """When it is; None is when the template asks."""


PLAIN = Rendering()


@dataclass(frozen=True)
class Prompt:
    """A dataset row and what the model is shown of it."""

    item: dict[str, Any]
    token_ids: list[int]


class UnusableRowError(Exception):
    """A row that no prompt can be made of; the message says why."""


class Problems:
    """Why rows of a file cannot be used: the first ``MAX_ROWS_NAMED`` by line, and how many there are."""

    def __init__(self) -> None:
        self.count = 0
        self._named: list[str] = []

    def add(self, line: int, reason: object) -> None:
        """``reason`` is put into words only where it is among those that are named."""
        self.count += 1
        if self.count <= MAX_ROWS_NAMED:
            self._named.append(f"line {line}: {reason}")

    def refusal(self, param: str) -> RunError:
        """What ends the run because of them or, where there are none, because the file has no row at all."""
        if not self.count:
            return RunError("invalid_file", "The file has no rows.", param=param)
        more = f" (and {self.count - MAX_ROWS_NAMED} more)" if self.count > MAX_ROWS_NAMED else ""
        listed = "; ".join(self._named)
        return RunError("invalid_file", f"{self.count} rows cannot be trained on: {listed}{more}.", param=param)


def load(
    path: Path, tokenizer: PreTrainedTokenizerBase, context_length: int, param: str, rendering: Rendering = PLAIN
) -> list[Prompt]:
    """The prompts of a file. Raises ``RunError`` on ``param`` that counts the unusable rows and names the first."""
    problems = Problems()
    prompts = [
        prompt for part in batches(path) for prompt in read(part, tokenizer, context_length, problems, rendering)
    ]
    if problems.count or not prompts:
        raise problems.refusal(param)
    return prompts


def read(
    part: Sequence[tuple[int, bytes]],
    tokenizer: PreTrainedTokenizerBase,
    context_length: int,
    problems: Problems,
    rendering: Rendering = PLAIN,
) -> list[Prompt]:
    """The prompts of numbered lines; why the others have none is added to ``problems``."""
    items, asked = [], []
    for number, raw in part:
        try:
            item = parse(raw)
            asked.append(Asked(number, messages_of(item, tokenizer), item.get("tools")))
            items.append(item)
        except UnusableRowError as error:
            problems.add(number, error)
    rows: list[tuple[int, dict[str, Any], str]] = []
    for one, item, text in zip(asked, items, render(asked, tokenizer, rendering), strict=True):
        if isinstance(text, str):
            rows.append((one.line, item, text))
        else:
            problems.add(one.line, text)
    texts = [text for _, _, text in rows]
    encoded = tokenizer(texts, add_special_tokens=tokenizer.chat_template is None)["input_ids"] if texts else []
    prompts = []
    for (number, item, _), ids in zip(rows, encoded, strict=True):
        if 0 < len(ids) < context_length:
            prompts.append(Prompt(item, ids))
            continue
        reason = "has no tokens" if not ids else f"has {len(ids)} tokens; the model's context is {context_length}"
        problems.add(number, f"the prompt {reason} and an answer needs room too")
    return prompts


@dataclass(frozen=True)
class Asked:
    """Messages to be written as one text."""

    line: int
    """Of the file that they are from."""
    messages: list[dict[str, Any]]
    """As ``messages_of`` gives them."""
    tools: Any
    answer_next: bool = True
    """Whether the text goes on to where an answer of the assistant begins."""


def messages_of(item: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """A row's messages as chat templates of open models take them. Raises ``UnusableRowError``."""
    try:
        return messages.for_template(item["messages"], template(tokenizer, item.get("tools")))
    except messages.UnusableMessageError as error:
        raise UnusableRowError(str(error)) from error


def render(
    asked: Sequence[Asked], tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN
) -> list[str | UnusableRowError]:
    """The texts that the model reads, or why the chat template has none. Without one, the contents, one a line.

    A template works in bounds, see ``workers.bounded``. Raises ``RunError`` where it exceeds them.
    """
    if tokenizer.chat_template is None:
        return [messages.joined(each.messages) for each in asked]
    known = special_tokens(tokenizer)
    tasks = [
        Render(
            kind="render",
            template=template(tokenizer, each.tools) or "",
            special_tokens=known,
            messages=each.messages,
            tools=each.tools,
            answer_next=each.answer_next,
            most=MAX_CHARACTERS,
            values=dict(rendering.values),
            now=None if rendering.now is None else rendering.now.astimezone(UTC).isoformat(),
        )
        for each in asked
    ]
    texts: list[str | UnusableRowError] = []
    for each, answer in zip(asked, client.run(tasks), strict=True):
        if answer.get("exceeded"):
            message = f"On line {each.line} of the file, {answer['refused']}. Mend the template, or shorten the row."
            raise RunError("invalid_model", message, param="model")
        texts.append(UnusableRowError(answer["refused"]) if "refused" in answer else answer["text"])
    return texts


def rendering_of(
    hyperparameters: Hyperparameters | SupervisedHyperparameters,
    tokenizer: PreTrainedTokenizerBase,
    now: datetime | None,
) -> Rendering:
    """What the job tells the template. Raises ``RunError`` where it is told what it never reads.

    ``reasoning_effort`` outside of ``chat_template_kwargs`` is left out there.
    """
    values = hyperparameters.template_values
    if not values:
        return Rendering(now=now)
    names = template_names(tokenizer)
    wrong = chat_template.unread(hyperparameters.chat_template_kwargs, names)
    if wrong is not None:
        message = f"{wrong[0].upper()}{wrong[1:]}."
        raise RunError("invalid_chat_template_kwargs", message, param="hyperparameters.chat_template_kwargs")
    return Rendering({name: value for name, value in values.items() if name in names}, now)


def template_names(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The names that the tokenizer's templates read. Raises ``RunError`` where one cannot be read."""
    templates = {template(tokenizer, None), template(tokenizer, [{}])} - {None}
    found: set[str] = set()
    for answer in client.run([Names(kind="names", template=str(each)) for each in templates]):
        if "refused" in answer:
            raise RunError("invalid_model", f"The model cannot be used: {answer['refused']}.", param="model")
        found |= set(answer["names"])
    return found - special_tokens(tokenizer).keys()


def template(tokenizer: PreTrainedTokenizerBase, tools: Any) -> str | None:
    """The chat template that is used for messages with these tools; some tokenizers have one of their own for them."""
    if tokenizer.chat_template is None:
        return None
    try:
        return str(tokenizer.get_chat_template(tools=tools))
    except ValueError as error:
        raise RunError("invalid_model", f"The model's chat template cannot be used: {error}", param="model") from error


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Those that chat templates may name, by name."""
    found = tokenizer.special_tokens_map.items()
    return {name: [str(each) for each in value] if isinstance(value, list) else str(value) for name, value in found}


def rows_of_step(step: int, seed: int, rows: int, batch_size: int, total: int | None = None) -> list[int]:
    """Which rows step ``step`` (from 1) trains on: a window on one shuffled epoch after another.

    ``total`` is how many rows all steps train on together; None is no end.
    """
    end = step * batch_size if total is None else min(step * batch_size, total)
    positions = range((step - 1) * batch_size, end)
    orders = {epoch: _permutation(seed, epoch, rows) for epoch in {position // rows for position in positions}}
    return [orders[position // rows][position % rows] for position in positions]


def rows_in_all(rows: int, batch_size: int, n_steps: int, n_epochs: int) -> int:
    """How many rows ``n_steps`` train on: no more than the epochs have, so that the last step may be a smaller one."""
    asked = rows * n_epochs
    return asked if (n_steps - 1) * batch_size < asked < n_steps * batch_size else n_steps * batch_size


def _permutation(seed: int, epoch: int, rows: int) -> list[int]:
    generator = torch.Generator().manual_seed(seeds.derive(seed, "order", epoch))
    order: list[int] = torch.randperm(rows, generator=generator).tolist()
    return order


def batches(path: Path) -> Iterator[list[tuple[int, bytes]]]:
    """Numbers and contents of the lines that are not blank, as many together as are rendered and encoded at once."""
    part: list[tuple[int, bytes]] = []
    size = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            part.append((number, raw))
            size += len(raw)
            if len(part) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield part
                part, size = [], 0
    if part:
        yield part


def parse(raw: bytes) -> dict[str, Any]:
    """The row on a line. Raises ``UnusableRowError``."""
    try:
        item = json.loads(raw)
    except json.JSONDecodeError as error:
        raise UnusableRowError(f"not JSON ({error.msg} in column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise UnusableRowError("not UTF-8") from error
    messages = item.get("messages") if isinstance(item, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise UnusableRowError("needs 'messages', a list of at least one message")
    parsed: dict[str, Any] = item
    return parsed
