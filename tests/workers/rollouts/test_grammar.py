"""Answers are held to a schema: where it begins, what may end it, and that the probabilities are those sampled from."""

import json
from typing import Any

import pytest
import torch
from llguidance import LLParserLimits
from torch import Tensor
from transformers import AddedToken

from tests.workers.serving import tiny
from workers.bounded import grammars
from workers.demo import make_tokenizer
from workers.rollouts.engine import Sampling
from workers.rollouts.grammar import BITS, Grammar, GrammarFailedError, Grammars, UnconstrainableError, unpacked
from workers.rollouts.transformers import TransformersEngine

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large", "largest"]}, "count": {"type": "integer"}},
    "required": ["size", "count"],
    "additionalProperties": False,
}
TOKENIZER = tiny.tokenizer()
EOS, OTHER_END = TOKENIZER.eos_token_id, TOKENIZER.get_vocab()["<|endoftext|>"]
SIZE = len(TOKENIZER)
PROMPTS = [TOKENIZER(text)["input_ids"] for text in ("How many?", "A longer question: how large?", "?")]


def grammar(schema: dict[str, Any] = SCHEMA, stop_ids: tuple[int, ...] = (EOS,), tokenizer: Any = TOKENIZER) -> Grammar:
    return Grammars(tokenizer, len(tokenizer), stop_ids).of(schema)


def ids(text: str, tokenizer: Any = TOKENIZER) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def allowed(held: Grammar, prompt: str, answer: str, tokenizer: Any = TOKENIZER) -> Tensor:
    """``[N, V]`` of the answer's tokens."""
    return unpacked(held.masks(ids(prompt, tokenizer), ids(answer, tokenizer)), held.vocabulary_size)


@torch.no_grad()
def log_probs_among(held: Grammar, prompt: list[int], answer: list[int], temperature: float) -> Tensor:
    """What the model alone, among what the grammar allows, gives an answer."""
    logits = tiny.model()(torch.tensor([prompt + answer]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    logits = logits.masked_fill(~unpacked(held.masks(prompt, answer), SIZE), -torch.inf)
    rows: Tensor = (logits / temperature).log_softmax(-1)
    return rows.gather(-1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_answers_fit_the_schema_and_are_as_likely_as_among_what_it_allows(temperature: float) -> None:
    held = grammar()
    engine = TransformersEngine(tiny.model(), [EOS], tiny.CONTEXT)
    groups = engine.generate(PROMPTS, 3, Sampling(temperature, 120, seed=1, grammar=held))
    ended = 0
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for rollout in group:
            expected = log_probs_among(held, prompt, rollout.token_ids, temperature or 1.0)
            torch.testing.assert_close(torch.tensor(rollout.log_probs), expected, atol=2e-5, rtol=0)
            if rollout.finish_reason == "stop":
                ended += 1
                said = json.loads(TOKENIZER.decode(rollout.token_ids, skip_special_tokens=True))
                assert said["size"] in SCHEMA["properties"]["size"]["enum"]
                assert isinstance(said["count"], int)
    assert ended


def test_rows_do_not_depend_on_which_others_are_in_the_batch() -> None:
    engine, sampling = (
        TransformersEngine(tiny.model(), [EOS], tiny.CONTEXT),
        Sampling(1.0, 60, seed=2, grammar=grammar()),
    )
    together = [[each.token_ids for each in group] for group in engine.generate(PROMPTS, 2, sampling)]
    alone = [
        [each.token_ids for each in engine.generate([prompt], 2, Sampling(1.0, 60, 2, first=i, grammar=grammar()))[0]]
        for i, prompt in enumerate(PROMPTS)
    ]
    assert together == alone


def test_a_token_without_alternative_is_certain() -> None:
    held = grammar({"const": "yes"})
    masks = allowed(held, "?", '"yes"')
    # Of '"yes"', the tokens that may come are its beginnings.
    begins = [TOKENIZER.decode([token]) for token in masks[0].nonzero()[:, 0].tolist()]
    assert all('"yes"'.startswith(text) for text in begins)
    group = TransformersEngine(tiny.model(), [EOS], tiny.CONTEXT).generate(
        PROMPTS[:1], 1, Sampling(1.0, 20, seed=1, grammar=held)
    )[0]
    assert group[0].log_probs[-1] == 0.0
    assert group[0].token_ids[-1] == EOS


def test_any_end_of_an_answer_may_follow_what_fits() -> None:
    masks = allowed(grammar({"type": "integer"}, (EOS, OTHER_END)), "?", "42")
    assert not masks[0, [EOS, OTHER_END]].any()
    assert masks[1, [EOS, OTHER_END]].all()
    assert masks[1, ids("7")[0]]


@pytest.mark.parametrize("opened", [True, False])
def test_the_schema_holds_behind_the_reasoning_that_the_prompt_opened(opened: bool) -> None:
    prompt, answer = f"?{'<think>' if opened else ''}", f"{'hm' if opened else ''}{'</think>' if opened else ''}42"
    masks = allowed(grammar({"type": "integer"}), prompt, answer)
    if opened:
        before = len(ids("hm</think>"))
        assert masks[:before].all()
        assert not masks[before].all()
    else:
        assert not masks[0].all()
    assert masks[range(len(masks)), ids(answer)].all()


def test_the_schema_holds_in_the_final_channel() -> None:
    tokenizer = tiny.tokenizer()
    marks = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"]
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in marks], special_tokens=True)
    tokenizer.add_tokens(["final", "analysis", "assistant", "user"])
    held = grammar({"type": "integer"}, tokenizer=tokenizer)
    prompt = "<|start|>user<|message|>?<|end|><|start|>assistant"
    thought = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>"
    masks = allowed(held, prompt, f"{thought}42", tokenizer)
    before = len(ids(thought, tokenizer))
    assert masks[:before].all()
    assert not masks[before:].all(-1).any()
    assert not held.begins_at_once(ids(prompt, tokenizer))


def test_an_answer_that_takes_too_much_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = LLParserLimits(step_max_items=20, verbose_errors=False)
    monkeypatch.setattr(grammars, "LIMITS", tight)
    kinds = [{"type": kind} for kind in ("integer", "object", "string", "array")]
    held = grammar({"type": "array", "minItems": 1, "items": {"anyOf": kinds}})
    engine = TransformersEngine(tiny.model(), [EOS], tiny.CONTEXT)
    with pytest.raises(GrammarFailedError, match="could not be held to the JSON schema"):
        engine.generate(PROMPTS, 1, Sampling(1.0, 60, seed=1, grammar=held))


def test_bits_are_unpacked_alike_on_every_device() -> None:
    masks = torch.randint(-(2**31), 2**31, (3, 4), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    octets = masks.view(torch.uint8).unsqueeze(-1)
    expected = torch.tensor([[word >> bit & 1 for word in row for bit in range(32)] for row in masks.tolist()]).bool()
    assert torch.equal(unpacked(masks, 128), expected)
    assert torch.equal((octets >> BITS & 1).flatten(1).view(torch.bool), expected)
    assert torch.equal(unpacked(masks, 101), expected[:, :101])


def test_tokens_that_are_joined_as_they_are_can_be_held() -> None:
    tokenizer = make_tokenizer()
    held = grammar({"enum": [12, 140]}, (tokenizer.eos_token_id,), tokenizer)
    names = [
        [tokenizer.convert_ids_to_tokens(token) for token in row.nonzero()[:, 0].tolist()]
        for row in allowed(held, "1", "140<|eos|>", tokenizer)
    ]
    assert names == [["1"], ["2", "4"], ["0"], ["<|eos|>"]]


def test_a_tokenizer_that_cannot_write_it_is_told() -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(grammars.UnsupportedSchemaError, match="no token of the model can begin"):
        grammar({"enum": ["small"]}, (tokenizer.eos_token_id,), tokenizer)


def test_a_tokenizer_that_cannot_be_held_is_told() -> None:
    class Slow:
        def get_vocab(self) -> dict[str, int]:
            return {}

    with pytest.raises(UnconstrainableError, match="tokenizer"):
        Grammars(Slow(), 10, [1]).of(SCHEMA)
