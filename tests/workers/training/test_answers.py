"""Graders see the answer, not the reasoning before it."""

import pytest
from transformers import PreTrainedTokenizerBase

from workers.demo import make_tokenizer
from workers.training.answers import Answer, AnswerReader


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
