"""Ollama's Modelfile: the chat template in Ollama's language, what ends an answer, how answers are sampled.

Ollama does not run the template that a GGUF file carries. A template that writes each role's messages between texts
of its own is written anew, from what it makes of a few conversations, and is used only if it then makes the same of
others.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workers.exporting.chats import AGAIN, ANSWER, SYSTEM, USER, Chats
from workers.exporting.vocabulary import Vocabulary

NAME = "Modelfile"
SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Ollama's names of what generation_config.json says of sampling."""
UNKNOWN_TEMPLATE = (
    "The chat template cannot be written in Ollama's language, because it does more than put texts around messages. "
    "Ollama uses the GGUF's own only where it knows it: write a TEMPLATE by hand, or use llama.cpp."
)

Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Layout:
    """The texts that a template puts around messages."""

    begin: str
    """Before the first message, where that is not the system's."""
    system: tuple[str, str] | None
    """Around the system's message, up to the content of the user's first; None where there may be none."""
    user: tuple[str, str]
    answer: tuple[str, str]
    next: str
    """Where an answer begins."""

    def text(self, turns: Turns) -> str:
        """What the template makes of ``turns``, after which an answer is to begin."""
        written, after_system = "", False
        if turns[0][0] != "system":
            written = self.begin
        for role, content in turns:
            if role == "system":
                assert self.system is not None
                written += self.system[0] + content + self.system[1]
            else:
                before, after = self.user if role == "user" else self.answer
                written += ("" if after_system else before) + content + after
            after_system = role == "system"
        return written + self.next

    def in_go(self) -> str:
        """The template as Ollama reads it."""
        system = self.system or ("", "")
        return (
            f"{{{{ if not .System }}}}{_go(self.begin)}{{{{ end }}}}"
            "{{ range $i, $m := .Messages }}"
            f'{{{{ if eq .Role "system" }}}}{_go(system[0])}{{{{ .Content }}}}{_go(system[1])}'
            '{{ else if eq .Role "user" }}'
            f"{{{{ if not (and $.System (eq $i 1)) }}}}{_go(self.user[0])}{{{{ end }}}}"
            f"{{{{ .Content }}}}{_go(self.user[1])}"
            f'{{{{ else if eq .Role "assistant" }}}}{_go(self.answer[0])}{{{{ .Content }}}}{_go(self.answer[1])}'
            "{{ end }}{{ end }}"
            f"{_go(self.next)}"
        )


def write(folder: Path, gguf: str, source: Path, vocabulary: Vocabulary, chats: Chats) -> list[str]:
    """Write the file beside the GGUF file of that name. Returns what its reader has to know."""
    lines, notes = [f"FROM ./{gguf}"], []
    layout = read(chats)
    if layout is not None:
        lines.append(f'TEMPLATE """{_without_bos(layout, vocabulary).in_go()}"""')
    elif chats.template is not None:
        notes.append(UNKNOWN_TEMPLATE)
        lines.append(f"# {UNKNOWN_TEMPLATE}")
    lines += [f"PARAMETER stop {json.dumps(vocabulary.tokens[id], ensure_ascii=False)}" for id in vocabulary.ends]
    lines += [f"PARAMETER {name} {value}" for name, value in _sampling(source).items()]
    (folder / NAME).write_text("\n".join(lines) + "\n")
    return notes


def read(chats: Chats) -> Layout | None:
    """The texts around messages; None where the template does more than that."""
    first, plain = chats.first, chats.text([("user", USER)], answer_next=False)
    talk = chats.text([("user", USER), ("assistant", ANSWER), ("user", AGAIN)])
    ended = chats.text([("user", USER), ("assistant", ANSWER)], answer_next=False)
    if first is None or plain is None or talk is None or ended is None:
        return None
    texts = _between(first, USER), _between(plain, USER), _between(talk, USER, ANSWER, AGAIN), _between(ended, ANSWER)
    if any(text is None for text in texts):
        return None
    (start, to_answer), (_, user_after), (_, middle, back, _), (_, answer_after) = (text or [] for text in texts)
    if not (to_answer.startswith(user_after) and middle.startswith(user_after) and back.startswith(answer_after)):
        return None
    user_before = back.removeprefix(answer_after)
    if not start.endswith(user_before):
        return None
    layout = Layout(
        begin=start.removesuffix(user_before),
        system=_around_system(chats),
        user=(user_before, user_after),
        answer=(middle.removeprefix(user_after), answer_after),
        next=to_answer.removeprefix(user_after),
    )
    return layout if _is_the_same(layout, chats) else None


def _around_system(chats: Chats) -> tuple[str, str] | None:
    text = chats.text([("system", SYSTEM), ("user", USER)])
    parts = None if text is None else _between(text, SYSTEM, USER)
    return None if parts is None else (parts[0], parts[1])


def _is_the_same(layout: Layout, chats: Chats) -> bool:
    asked: list[tuple[str, str]] = [("user", "1 + 1?"), ("assistant", "2."), ("user", "And 2?"), ("assistant", "3.")]
    talks: list[Turns] = [asked[:1], asked[:3], [*asked, ("user", "Why?")]]
    if layout.system is not None:
        talks += [[("system", "Be brief."), *talk] for talk in talks]
    return all(layout.text(talk) == chats.text(talk) for talk in talks)


def _between(text: str, *contents: str) -> list[str] | None:
    """What is before, between and behind ``contents``; None where one is not there exactly once, or not in order."""
    parts = []
    for content in contents:
        if text.count(content) != 1:
            return None
        before, _, text = text.partition(content)
        parts.append(before)
    return [*parts, text]


def _without_bos(layout: Layout, vocabulary: Vocabulary) -> Layout:
    """Ollama puts the token at the beginning itself, and would put it there twice."""
    if not vocabulary.begins_with_bos:
        return layout
    bos = vocabulary.tokens[vocabulary.special["bos"]]
    system = layout.system and (layout.system[0].removeprefix(bos), layout.system[1])
    return replace(layout, begin=layout.begin.removeprefix(bos), system=system)


def _sampling(source: Path) -> dict[str, Any]:
    path = source / "generation_config.json"
    settings = json.loads(path.read_bytes()) if path.is_file() else {}
    return {ours: settings[name] for name, ours in SAMPLING.items() if isinstance(settings.get(name), int | float)}


def _go(text: str) -> str:
    """A text as an action of Go's templates, whose strings are JSON's."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
