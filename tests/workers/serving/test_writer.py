"""From scripted tokens to what the API is told: reasoning, tool calls, stop strings, log-probabilities, ends."""

from typing import Any

import pytest

from service.inference.wire import Delta, End
from tests.workers.serving import tiny
from workers.serving.host.engine import Key, Token
from workers.serving.host.vocabulary import Vocabulary
from workers.serving.host.writer import OutputFormat, Writer

TOKENIZER = tiny.tokenizer()
VOCABULARY = Vocabulary(TOKENIZER)
THINK = [TOKENIZER.get_vocab()["<think>"]]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def write(text: str, end: str = "stop", **format: Any) -> tuple[list[Delta], End]:
    """What is said when the model says ``text`` and then ends by itself, or by its limit."""
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    tokens = [Token(Key("q", 0), id, logprob=-1.0) for id in ids]
    if end == "stop":
        tokens.append(Token(Key("q", 0), TOKENIZER.eos_token_id, "stop"))
    else:
        tokens[-1] = Token(Key("q", 0), ids[-1], "length")
    writer = Writer(0, VOCABULARY, OutputFormat(**{"stop": [], "scored": False, "prompt": [], **format}))
    events: list[Any] = []
    for token in tokens:
        events += writer.take(token)
        if events and isinstance(events[-1], End):
            break
    *deltas, last = events
    assert isinstance(last, End)
    return deltas, last


def joined(deltas: list[Delta]) -> tuple[str, str]:
    return "".join(each.content for each in deltas), "".join(each.reasoning for each in deltas)


def test_plain_text() -> None:
    deltas, end = write("Hello 東京 😀")
    assert joined(deltas) == ("Hello 東京 😀", "")
    assert (end.finish_reason, end.reasoning_tokens) == ("stop", 0)
    assert end.tokens == len(TOKENIZER("Hello 東京 😀")["input_ids"]) + 1


def test_reasoning_is_told_apart() -> None:
    deltas, end = write("<think>\nhm, 1+1\n</think>\n\nTwo.")
    assert joined(deltas) == ("Two.", "hm, 1+1\n")
    assert end.reasoning_tokens == len(TOKENIZER("<think>\nhm, 1+1\n</think>")["input_ids"])


def test_reasoning_that_the_prompt_began() -> None:
    assert joined(write("hm</think>Two.", prompt=THINK)[0]) == ("Two.", "hm")


def test_reasoning_that_never_ends() -> None:
    deltas, end = write("<think>hm", "length")
    assert (joined(deltas), end.finish_reason) == (("", "hm"), "length")


def test_marks_mean_nothing_where_a_text_is_continued() -> None:
    assert joined(write("<think>a</think>b", is_chat=False)[0]) == ("<think>a</think>b", "")


@pytest.mark.parametrize("stop", ["world", "lo wo", "d!"])
def test_stop_strings(stop: str) -> None:
    deltas, end = write("Hello world!", stop=[stop])
    assert joined(deltas)[0] == "Hello world!"[: "Hello world!".index(stop)]
    assert end.finish_reason == "stop"


def test_stop_strings_do_not_end_reasoning() -> None:
    assert joined(write("<think>a.b</think>c.d", stop=["."])[0]) == ("c", "a.b")


def test_what_was_held_back_for_a_stop_string_is_said_in_the_end() -> None:
    assert joined(write("Hello wor", stop=["world"])[0])[0] == "Hello wor"
    assert joined(write("Hello wor", "length", stop=["world"])[0])[0] == "Hello wor"


def test_tokens_behind_a_stop_string_are_not_scored() -> None:
    deltas, _ = write("Hello world!", stop=["wor"], scored=True)
    assert "".join(each.token for delta in deltas for each in delta.logprobs) == "Hello "


def test_every_token_of_content_is_scored_once() -> None:
    deltas, _ = write("<think>hm</think>Größe 😀", scored=True)
    scored = [each for delta in deltas for each in delta.logprobs]
    assert len(scored) == len(TOKENIZER("Größe 😀", add_special_tokens=False)["input_ids"])
    assert all(each.logprob == -1.0 for each in scored)


def test_a_tool_call() -> None:
    deltas, end = write(f"Let me see.\n{CALL}", tools=True)
    ((call,),) = (delta.tool_calls for delta in deltas if delta.tool_calls)
    assert (call.name, call.arguments) == ("weather", '{"city": "Köln"}')
    assert joined(deltas)[0] == "Let me see."
    assert end.finish_reason == "tool_calls"


def test_several_tool_calls_and_only_one_of_them() -> None:
    deltas, _ = write(f"{CALL}\n{CALL}", tools=True)
    assert len([call for delta in deltas for call in delta.tool_calls]) == 2
    assert joined(deltas)[0] == ""
    deltas, end = write(f"{CALL}\n{CALL}", tools=True, parallel_tool_calls=False)
    assert len([call for delta in deltas for call in delta.tool_calls]) == 1
    assert end.finish_reason == "tool_calls"


def test_a_tool_call_without_its_end() -> None:
    deltas, end = write(CALL.removesuffix("</tool_call>"), tools=True)
    assert len([call for delta in deltas for call in delta.tool_calls]) == 1
    assert end.finish_reason == "tool_calls"


@pytest.mark.parametrize("text", ["<tool_call>no JSON</tool_call>", "<tool_call>[1]</tool_call> x", "a <tool_call>{"])
def test_what_is_no_tool_call_stays_content(text: str) -> None:
    deltas, end = write(text, tools=True)
    assert joined(deltas)[0] == text
    assert end.finish_reason == "stop"
