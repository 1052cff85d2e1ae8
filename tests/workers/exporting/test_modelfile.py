"""Ollama is told the chat template in its own language, and what ends an answer."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from service.contracts import chat_template
from tests.workers.exporting import models
from tests.workers.exporting.models import CHATML, INST
from workers.exporting import modelfile
from workers.exporting.gguf_file import Source

WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe \"kind\".<|im_end|>\\n' }}{% endif %}" + CHATML
)
SYSTEM_IN_FIRST_TURN = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}{% set talk = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set talk = messages %}{% endif %}"
    "{% for message in talk %}{{ '<|im_start|>' + message.role + '\\n' + (first if loop.first else '')"
    " + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
THINKING = CHATML + "{% if add_generation_prompt and not think %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
COUNTING = "{% for message in messages %}{{ loop.index }}{{ ': ' + message.content + '<|im_end|>' }}{% endfor %}"

USER, ANSWER = {"role": "user", "content": "1 + {{ 1 }}?"}, {"role": "assistant", "content": 'It is "2".'}
TALKS = {
    "one": [USER],
    "several": [USER, ANSWER, {"role": "user", "content": "Sure?"}],
    "system": [{"role": "system", "content": "Be brief."}, USER, ANSWER, USER],
}


def write(folder: Path) -> tuple[str, list[str]]:
    source = Source.of(folder)
    notes = modelfile.write(folder, "model.gguf", folder, source.vocabulary, source.chats)
    return (folder / "Modelfile").read_text(), notes


def in_ollama(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of the actions that are used here."""
    parts = re.split(r"\{\{ (.*?) \}\}(?=\{\{|$|\"\"\")", template)
    assert set(parts[::2]) == {""}
    actions = parts[1::2]
    system = "\n\n".join(each["content"] for each in messages if each["role"] == "system")

    def block(start: int) -> int:
        """Where the block that begins at ``start`` ends."""
        depth = 0
        for place in range(start, len(actions)):
            depth += actions[place].startswith(("if ", "range "))
            depth -= actions[place] == "end"
            if depth == 0:
                return place
        raise AssertionError

    def holds(condition: str, index: int, message: dict[str, str]) -> bool:
        role = re.fullmatch(r'eq \.Role "(\w+)"', condition)
        if role:
            return message["role"] == role[1]
        return {"not .System": not system, "not (and $.System (eq $i 1))": not (system and index == 1)}[condition]

    def run(start: int, end: int, index: int, message: dict[str, str]) -> str:
        text, place = "", start
        while place < end:
            action = actions[place]
            if action.startswith("range "):
                last = block(place)
                text += "".join(run(place + 1, last, number, each) for number, each in enumerate(messages))
                place = last
            elif action.startswith("if "):
                last = block(place)
                branches, depth = [place], 0
                for inner in range(place + 1, last):
                    depth += actions[inner].startswith("if ")
                    depth -= actions[inner] == "end"
                    if depth == 0 and actions[inner].startswith("else if "):
                        branches.append(inner)
                for branch, until in zip(branches, [*branches[1:], last], strict=True):
                    if holds(actions[branch].removeprefix("else ").removeprefix("if "), index, message):
                        text += run(branch + 1, until, index, message)
                        break
                place = last
            elif action == ".Content":
                text += message["content"]
            else:
                text += json.loads(action)
            place += 1
        return text

    return run(0, len(actions), -1, {})


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize(
    "template",
    [CHATML, WITH_DEFAULT, SYSTEM_IN_FIRST_TURN, THINKING],
    ids=["chatml", "default-system", "system-in-first-turn", "thinking"],
)
def test_ollama_writes_a_chat_as_the_template_does(tmp_path: Path, template: str, talk: str) -> None:
    tokenizer = models.byte_level(template=template)
    folder = models.save(tmp_path / "model", "qwen3", tokenizer)
    (folder / chat_template.FILE).write_text('{"think": false}')
    text, notes = write(folder)
    go = text.partition('TEMPLATE """')[2].partition('"""\n')[0]
    expected = tokenizer.apply_chat_template(TALKS[talk], tokenize=False, add_generation_prompt=True, think=False)
    assert (in_ollama(go, TALKS[talk]), notes) == (expected, [])


def test_ollama_adds_the_first_token_itself(tmp_path: Path) -> None:
    tokenizer = models.sentencepiece(template=INST)
    text, _ = write(models.save(tmp_path / "model", "llama", tokenizer))
    go = text.partition('TEMPLATE """')[2].partition('"""\n')[0]
    expected = tokenizer.apply_chat_template(TALKS["several"], tokenize=False, add_generation_prompt=True)
    assert "<s>" + in_ollama(go, TALKS["several"]) == expected


def test_a_template_that_does_more_is_left_out_and_told(tmp_path: Path) -> None:
    text, notes = write(models.save(tmp_path / "model", "qwen3", models.byte_level(template=COUNTING)))
    assert 'TEMPLATE """' not in text
    assert notes == [modelfile.UNKNOWN_TEMPLATE]
    assert notes[0] in text


def test_every_end_stops_ollama(tmp_path: Path) -> None:
    tokenizer = models.byte_level(added=('<|ca"ll|>',))
    generation: dict[str, Any] = {
        "eos_token_id": tokenizer.convert_tokens_to_ids(['<|ca"ll|>']),
        "temperature": 0.6,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "max_new_tokens": 7,
    }
    text, _ = write(models.save(tmp_path / "model", "qwen3", tokenizer, generation=generation))
    assert text.startswith("FROM ./model.gguf\n")
    assert set(re.findall("PARAMETER (.*)", text)) == {
        'stop "<|endoftext|>"',
        'stop "<|im_end|>"',
        'stop "<|ca\\"ll|>"',
        "temperature 0.6",
        "top_k 20",
        "repeat_penalty 1.05",
    }
