"""From rows of a JSONL file to prompts of token ids, and which rows a step trains on.

The order is a permutation for each epoch that follows from the seed alone, so the position in the data is the step.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from workers.training import seeds
from workers.training.errors import RunError

MAX_ROWS_NAMED = 20
BATCH_ROWS = 256
BATCH_BYTES = 1 << 20
"""Rows that are rendered and encoded together end with the one that reaches either number."""


@dataclass(frozen=True)
class Prompt:
    """A dataset row and what the model is shown of it."""

    item: dict[str, Any]
    token_ids: list[int]


class UnusableRow(Exception):
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


def load(path: Path, tokenizer: PreTrainedTokenizerBase, context_length: int, param: str) -> list[Prompt]:
    """The prompts of a file. Raises ``RunError`` on ``param`` that counts the unusable rows and names the first."""
    problems = Problems()
    prompts = [prompt for part in batches(path) for prompt in read(part, tokenizer, context_length, problems)]
    if problems.count or not prompts:
        raise problems.refusal(param)
    return prompts


def read(
    part: Sequence[tuple[int, bytes]], tokenizer: PreTrainedTokenizerBase, context_length: int, problems: Problems
) -> list[Prompt]:
    """The prompts of numbered lines; why the others have none is added to ``problems``."""
    rows: list[tuple[int, dict[str, Any], str]] = []
    for number, raw in part:
        try:
            item = parse(raw)
            rows.append((number, item, render(item, tokenizer)))
        except UnusableRow as error:
            problems.add(number, error)
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


def render(item: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text the model continues: the chat template's, or the messages' contents, one a line, without one."""
    return render_messages(messages_of(item, tokenizer), item.get("tools"), tokenizer, answer_next=True)


def messages_of(item: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """A row's messages as chat templates of open models take them. Raises ``UnusableRow``."""
    messages = [_plain(message) for message in item["messages"]]
    if "developer" not in str(tokenizer.chat_template):
        # OpenAI's name for what open models' templates call the system message.
        messages = [message | {"role": message["role"].replace("developer", "system")} for message in messages]
    return messages


def render_messages(
    messages: list[dict[str, Any]], tools: Any, tokenizer: PreTrainedTokenizerBase, *, answer_next: bool
) -> str:
    """The messages as one text, with what an answer of the assistant follows on if ``answer_next``."""
    if tokenizer.chat_template is None:
        return "\n".join(message.get("content") or "" for message in messages)
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=answer_next, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise UnusableRow(f"the model's chat template refuses the messages: {error}") from error
    return str(text)


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
    """The row on a line. Raises ``UnusableRow``."""
    try:
        item = json.loads(raw)
    except json.JSONDecodeError as error:
        raise UnusableRow(f"not JSON ({error.msg} in column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise UnusableRow("not UTF-8") from error
    messages = item.get("messages") if isinstance(item, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise UnusableRow("needs 'messages', a list of at least one message")
    parsed: dict[str, Any] = item
    return parsed


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its content as one string, and the arguments of tool calls as values instead of JSON."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise UnusableRow("a message has no role")
    if isinstance(content, list):
        if not all(isinstance(block, dict) and isinstance(block.get("text"), str) for block in content):
            raise UnusableRow("a message has content other than text")
        content = "".join(block["text"] for block in content)
    if content is not None and not isinstance(content, str):
        raise UnusableRow("a message's content is neither text nor a list of text blocks")
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message = message | {"tool_calls": [_with_values(call) for call in calls]}
    return message | {"content": content}


def _with_values(call: Any) -> Any:
    """OpenAI writes a call's arguments as JSON in a string; templates write JSON themselves."""
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments, str):
        return call
    try:
        values = json.loads(arguments)
    except json.JSONDecodeError:
        return call
    return call | {"function": function | {"arguments": values}} if isinstance(values, dict) else call
