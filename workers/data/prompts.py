"""From rows of a JSONL file to prompts of token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from workers.data.jsonl import Problems, UnusableRowError, batches, parse
from workers.data.templating import PLAIN, Asked, Rendering, messages_of, render


@dataclass(frozen=True)
class Prompt:
    """A dataset row and what the model is shown of it."""

    item: dict[str, Any]
    token_ids: list[int]


def load_prompts(
    path: Path, tokenizer: PreTrainedTokenizerBase, context_length: int, param: str, rendering: Rendering = PLAIN
) -> list[Prompt]:
    """The prompts of a file. Raises ``RunError`` on ``param`` that counts the unusable rows and names the first."""
    problems = Problems()
    prompts: list[Prompt] = []
    for part in batches(path):
        prompts += read_prompts(part, tokenizer, context_length, problems, rendering)
    if problems.count or not prompts:
        raise problems.refusal(param)
    return prompts


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
