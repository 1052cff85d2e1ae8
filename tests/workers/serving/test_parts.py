"""What a chat tells of an answer is what graders see of it, whichever way the model marks its reasoning."""

from typing import Any

import pytest
from transformers import AddedToken, PreTrainedTokenizerBase

from service.inference.wire import Delta, End
from tests.workers.serving import tiny
from workers.answers import AROUND_REASONING, AnswerReader
from workers.serving.host.engine import Key, Token
from workers.serving.host.vocabulary import Vocabulary
from workers.serving.host.writer import OutputFormat, Writer

HARMONY = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"]
ASKED = "<|start|>user<|message|>6*7?<|end|><|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>six times seven, é<|end|>"
SAID = "<|start|>assistant<|channel|>final<|message|>It is 42, 東京."
DECLARED = {
    "start_anchor": "assistant",
    "fields": {"thinking": {"open": "[[", "close": "]]"}, "content": {}},
}


def tokenizer(*marks: str, special: bool = True) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = tiny.tokenizer()
    made.add_tokens([AddedToken(mark, special=special) for mark in marks], special_tokens=special)
    return made


def tell(known: PreTrainedTokenizerBase, prompt: str, answer: str, end: str = "stop") -> tuple[list[Delta], End, Any]:
    """What a chat tells, and what graders see."""
    asked, said = (known(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    tokens = [Token(Key("q", 0), id) for id in said]
    if end == "stop":
        tokens.append(Token(Key("q", 0), known.eos_token_id, "stop"))
    else:
        tokens[-1] = Token(Key("q", 0), said[-1], "length")
    writer = Writer(0, Vocabulary(known), OutputFormat([], False, asked))
    *deltas, last = [event for token in tokens for event in writer.take(token)]
    assert isinstance(last, End)
    assert all(isinstance(each, Delta) for each in deltas)
    (graded,) = AnswerReader(known).read([asked], [[token.id for token in tokens]])
    return [each for each in deltas if isinstance(each, Delta)], last, graded


def joined(deltas: list[Delta]) -> tuple[str, str]:
    return "".join(each.reasoning for each in deltas), "".join(each.content for each in deltas)


@pytest.mark.parametrize(("opens", "closes"), AROUND_REASONING)
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("opened", [True, False], ids=["by the prompt", "by the model"])
def test_every_pair_of_marks(opens: str, closes: str, special: bool, opened: bool) -> None:
    known = tokenizer(*({opens, closes} - {*tiny.MARKS}), special=special)
    prompt, answer = f"6*7?{opens if opened else ''}", f"{'' if opened else opens}\nsix é{closes}\n\nIt is 42."
    deltas, end, graded = tell(known, prompt, answer)
    assert joined(deltas) == ("six é", "It is 42.")
    assert (graded.text, graded.reasoning_tokens) == ("It is 42.", end.reasoning_tokens)
    assert len(deltas) > 4, "it comes as it is written"


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        (ASKED, THOUGHT + SAID, ("six times seven, é", "It is 42, 東京.")),
        (ASKED, SAID.removeprefix("<|start|>assistant"), ("", "It is 42, 東京.")),
        (ASKED, THOUGHT, ("six times seven, é", "")),
        (ASKED, "<|channel|>analysis<|message|>six", ("six", "")),
        (ASKED, "<|message|>42", ("", "42")),
        (ASKED, "42", ("", "42")),
        (f"{ASKED}<|channel|>final<|message|>", "42", ("", "42")),
        (f"{ASKED}<|channel|>analysis<|message|>", f"six<|end|>{SAID}", ("six", "It is 42, 東京.")),
        (ASKED, "<|channel|>commentary to=f<|message|>{}<|call|>", ("{}", "")),
        ("6*7?", "42", ("", "42")),
    ],
)
@pytest.mark.parametrize("end", ["stop", "length"])
def test_channels(prompt: str, answer: str, expected: tuple[str, str], end: str) -> None:
    known = tokenizer(*HARMONY)
    known.add_tokens(["final", "analysis", "commentary", "assistant", "user"])
    deltas, told_end, graded = tell(known, prompt, answer, end)
    assert joined(deltas) == expected
    assert graded.text == expected[1]
    assert told_end.finish_reason == end


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("assistant", "[[six\n]]\nIt is [42]. ", ("six", "It is [42].")),
        ("assistant[[", "six ]]42", ("six", "42")),
        ("assistant", "42", ("", "42")),
        ("assistant", "[[six", ("six", "")),
        ("assistant", "It is 42.", ("", "It is 42.")),
    ],
)
@pytest.mark.parametrize("end", ["stop", "length"])
def test_what_the_tokenizer_declares(prompt: str, answer: str, expected: tuple[str, str], end: str) -> None:
    known = tokenizer()
    known.response_template = DECLARED
    deltas, _, graded = tell(known, prompt, answer, end)
    assert joined(deltas) == expected
    assert graded.text.strip() == expected[1]


@pytest.mark.parametrize("answer", ["no marks at all", "<think>six</think>42"])
def test_an_answer_that_does_not_follow_the_declaration_is_told_by_its_marks(answer: str) -> None:
    known = tokenizer()
    known.response_template = {
        "start_anchor": "assistant",
        "fields": {"content": {"open": "[[", "close": "]]", "optional": False}},
    }
    deltas, _, graded = tell(known, "assistant", answer)
    assert joined(deltas)[1] == graded.text == answer.removeprefix("<think>six</think>")


def test_reasoning_that_nobody_opened_is_not_shown_as_a_mark() -> None:
    deltas, _, graded = tell(tokenizer(), "6*7?", "six</think>42")
    assert joined(deltas)[1] == "six42"  # It was told before that could be known.
    assert graded.text == "42"


def test_tool_calls_behind_reasoning_are_found() -> None:
    known = tokenizer("[THINK]", "[/THINK]")
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    asked, said = ([*known(text, add_special_tokens=False)["input_ids"]] for text in ("?", f"[THINK]a[/THINK]\n{call}"))
    writer = Writer(0, Vocabulary(known), OutputFormat([], False, asked, tools=True))
    tokens = [*(Token(Key("q", 0), id) for id in said), Token(Key("q", 0), known.eos_token_id, "stop")]
    events: list[Any] = [event for token in tokens for event in writer.take(token)]
    assert [each.name for event in events[:-1] for each in event.tool_calls] == ["f"]
    assert joined(events[:-1]) == ("a", "")
    assert events[-1].finish_reason == "tool_calls"
