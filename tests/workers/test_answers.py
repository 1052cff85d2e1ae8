"""Graders see the answer, not the reasoning before it."""

import pytest
from transformers import AddedToken, PreTrainedTokenizerBase

from workers.answers import AROUND_REASONING, Answer, AnswerReader
from workers.demo import make_tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def read(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> Answer:
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)]
    (only,) = AnswerReader(tokenizer).read([ids[0]], [ids[1]])
    return only


def test_the_end_token_is_no_part_of_the_text() -> None:
    assert read(make_tokenizer(), "1+1=", "2<|eos|>") == Answer("2", 0)


def test_spaces_of_an_answer_are_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    assert read(tokenizer, "1+1=", " 2 <|eos|>") == Answer(" 2 ", 0)


def test_reasoning_is_counted_and_cut_off(tokenizer: PreTrainedTokenizerBase) -> None:
    assert read(tokenizer, "1+1=", "<think>1 1</think> 2<|eos|>") == Answer("2", 5)


def test_reasoning_that_the_prompt_opened_is_cut_off(tokenizer: PreTrainedTokenizerBase) -> None:
    assert read(tokenizer, "1+1=<think>", "11</think>2") == Answer("2", 3)


def test_reasoning_that_never_ended_leaves_no_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    assert read(tokenizer, "1+1=<think>", "1+1+1") == Answer("", 5)
    assert read(tokenizer, "1+1=", "<think>1+1") == Answer("", 4)


def test_a_closed_thought_in_the_prompt_is_not_the_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    assert read(tokenizer, "<think></think>", "12") == Answer("12", 0)


@pytest.mark.parametrize(("opens", "closes"), AROUND_REASONING)
@pytest.mark.parametrize("special", [True, False])
def test_models_think_between_other_tokens_too(opens: str, closes: str, special: bool) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(each, special=special) for each in (opens, closes)], special_tokens=special)
    assert read(tokenizer, "6+7=", f"{opens}66{closes}42<|eos|>") == Answer("42", 4)
    assert read(tokenizer, f"6+7={opens}", f"66{closes}42") == Answer("42", 3)
    assert read(tokenizer, f"6+7={opens}", "66") == Answer("", 2)
    assert read(tokenizer, f"6+7={opens}1{closes}", "66") == Answer("66", 0)


@pytest.fixture
def harmony() -> PreTrainedTokenizerBase:
    tokenizer = make_tokenizer()
    marks = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>"]
    tokenizer.add_tokens([AddedToken(each, special=True) for each in marks], special_tokens=True)
    tokenizer.add_tokens(["final", "analysis", "commentary", "assistant", "user"])
    return tokenizer


ASKED = "<|start|>user<|message|>6*7<|end|><|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>6*7=42<|end|>"


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        (ASKED, f"{THOUGHT}<|start|>assistant<|channel|>final<|message|>42<|return|>", Answer("42", 15)),
        (ASKED, "<|channel|>final<|message|>42<|return|>", Answer("42", 3)),
        (ASKED, THOUGHT, Answer("", 10)),
        (ASKED, "<|channel|>analysis<|message|>6*7", Answer("", 6)),
        (ASKED, "<|message|>42<|return|>", Answer("42", 1)),
        (ASKED, "42<|return|>", Answer("42", 0)),
        (f"{ASKED}<|channel|>final<|message|>", "42<|return|>", Answer("42", 0)),
        (
            f"{ASKED}<|channel|>analysis<|message|>",
            "6<|end|><|start|>assistant<|channel|>final<|message|>42",
            Answer("42", 7),
        ),
        (ASKED, "<|channel|>commentary<|message|>1<|call|>", Answer("", 5)),
        ("6*7=", "42<|eos|>", Answer("42", 0)),
    ],
)
def test_only_the_final_channel_is_said(
    harmony: PreTrainedTokenizerBase, prompt: str, answer: str, expected: Answer
) -> None:
    assert read(harmony, prompt, answer) == expected


DECLARED = {
    "start_anchor": "=",
    "fields": {"thinking": {"open": "*", "close": "/"}, "content": {}},
}


def test_what_the_tokenizer_declares_is_read(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.response_template = DECLARED
    assert read(tokenizer, "6+7=", "*66/42<|eos|>") == Answer("42", 2)
    assert read(tokenizer, "6+7=*", "66/42") == Answer("42", 2)
    assert read(tokenizer, "6+7=", "42") == Answer("42", 0)
