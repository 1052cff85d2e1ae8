"""What a model's chat template makes of conversations, and the template as other programs are to use it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from service.contracts import chat_template
from workers.data import templating
from workers.data.jsonl import UnusableRowError
from workers.data.templating import Asked, Rendering

SYSTEM, USER, ANSWER, AGAIN = "qsysq", "qaskedq", "qsaidq", "qagainq"
"""Contents that no template writes itself."""


@dataclass(frozen=True)
class Chats:
    """Of one model, with the ``values`` that its template is told beside the messages."""

    tokenizer: PreTrainedTokenizerBase
    values: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path, tokenizer: PreTrainedTokenizerBase) -> "Chats":
        return cls(tokenizer, chat_template.remembered(folder))

    @cached_property
    def template(self) -> str | None:
        """The template that needs to be told nothing: whoever reads the model elsewhere knows messages only."""
        given = templating.template(self.tokenizer, None)
        return None if given is None else told(given, self.values)

    @cached_property
    def first(self) -> str | None:
        """What the model reads of a user's first message; None without a template, or where it takes no such chat."""
        return self.text([("user", USER)])

    @property
    def begin_with_bos(self) -> bool:
        bos = self.tokenizer.bos_token
        return self.first is not None and bos is not None and self.first.startswith(str(bos))

    @property
    def begin_with_a_token(self) -> bool:
        """Whether a chat's text begins with an added token."""
        return self.first is not None and self.first.startswith(tuple(self.tokenizer.get_added_vocab()))

    def text(self, turns: Sequence[tuple[str, str]], answer_next: bool = True) -> str | None:
        """What the template makes of roles with contents; None where it refuses them."""
        if self.tokenizer.chat_template is None:
            return None
        messages = [{"role": role, "content": content} for role, content in turns]
        (text,) = templating.render([Asked(0, messages, None, answer_next)], self.tokenizer, Rendering(self.values))
        return None if isinstance(text, UnusableRowError) else text


def told(template: str, values: Mapping[str, Any]) -> str:
    """``template``, which is told ``values`` by itself, whatever it is told elsewhere."""
    return "".join(f"{{%- set {name} = {_literal(value)} -%}}" for name, value in values.items()) + template


def _literal(value: Any) -> str:
    """A JSON value as Jinja writes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(key)}: {_literal(each)}' for key, each in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)
