"""From rows of a JSONL file to prompts of token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from transformers import PreTrainedTokenizerBase

from workers.data.jsonl import Problems, UnusableRowError, batches, parse
from workers.data.packed import Lines, Runs
from workers.data.templating import PLAIN, Asked, Rendering, messages_of, render


@dataclass(frozen=True)
class Prompt:
    """A dataset row and what the model is shown of it."""

    item: dict[str, Any]
    token_ids: list[int]


class Prompts(Sequence[Prompt]):
    """The prompts of a file, of which only the token ids are kept in memory."""

    def __init__(self, path: Path, token_ids: Runs) -> None:
        self.token_ids = token_ids
        self._lines = Lines(path)

    def __len__(self) -> int:
        return len(self.token_ids)

    @overload
    def __getitem__(self, at: int) -> Prompt: ...
    @overload
    def __getitem__(self, at: slice) -> list[Prompt]: ...
    def __getitem__(self, at: int | slice) -> Prompt | list[Prompt]:
        if isinstance(at, slice):
            return [self[number] for number in range(len(self))[at]]
        number = range(len(self))[at]
        return Prompt(self._lines.item(number), [*self.token_ids[number]])


def load_prompts(
    path: Path, tokenizer: PreTrainedTokenizerBase, context_length: int, param: str, rendering: Rendering = PLAIN
) -> Prompts:
    """The prompts of a file. Raises ``RunError`` on ``param`` that counts the unusable rows and names the first."""
    problems, token_ids = Problems(), Runs()
    for part in batches(path):
        for prompt in read_prompts(part, tokenizer, context_length, problems, rendering):
            token_ids.append(prompt.token_ids)
    if problems.count or not token_ids:
        raise problems.refusal(param)
    return Prompts(path, token_ids)


def read_prompts(
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
