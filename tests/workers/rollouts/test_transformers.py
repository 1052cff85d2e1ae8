"""The transformers engine samples from the model, and says of each token how likely it was."""

from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workers.training import tiny
from workers.modeling.decoder import Decoder
from workers.rollouts import transformers
from workers.rollouts.engine import Begun, NonFiniteLogitsError, Sampling
from workers.rollouts.transformers import TransformersEngine

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 6], [15, 5], [7, 7, 7]]
NEVER = 10_000


def engine(family: str = "qwen3", stop_ids: tuple[int, ...] = (1,), context: int = tiny.CONTEXT) -> TransformersEngine:
    return TransformersEngine(tiny.model(family), stop_ids, context)


@torch.no_grad()
def log_probs_of(family: str, prompt: list[int], answer: list[int], temperature: float) -> Tensor:
    """What the model alone, without padding and cache, gives an answer."""
    ids = torch.tensor([prompt + answer])
    log_probs = (tiny.model(family)(ids, use_cache=False).logits[0] / temperature).log_softmax(-1)
    at = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    return log_probs[at, ids[0, len(prompt) :]]


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_log_probs_are_the_models(family: str) -> None:
    groups = engine(family).generate(PROMPTS, 3, Sampling(0.7, 12, seed=1))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for rollout in group:
            expected = log_probs_of(family, prompt, rollout.token_ids, 0.7)
            torch.testing.assert_close(torch.tensor(rollout.log_probs), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_most_likely_tokens_are_the_models_over_all_pieces(temperature: float) -> None:
    sampler = TransformersEngine(tiny.model("qwen3"), (1,), tiny.CONTEXT, top_log_probs=6)
    ((rollout,),) = sampler.generate(PROMPTS[:1], 1, Sampling(temperature, 3, seed=2))
    ((_, piece),) = sampler.extend([Begun(PROMPTS[0], rollout.token_ids, 4, seed=3)], temperature)
    whole = rollout.extended(piece)
    assert whole.top is not None
    ids = torch.tensor([PROMPTS[0] + whole.token_ids])
    with torch.no_grad():
        expected = (tiny.model("qwen3")(ids).logits[0] / temperature).log_softmax(-1)[len(PROMPTS[0]) - 1 : -1].topk(6)
    torch.testing.assert_close(torch.from_numpy(whole.top.log_probs), expected.values, atol=2e-5, rtol=0)
    assert whole.top.ids.tolist() == expected.indices.tolist()


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_pieces_of_answers_are_as_likely_as_the_model_finds_them(family: str) -> None:
    begun = [
        Begun([5, 6, 7], [], 6, seed=1),
        Begun([5, 6, 7], [], 3, seed=2),
        Begun([8, 9], [10, 11, 12, 13, 14, 6, 7, 8, 9], 5, seed=3),
        Begun([15], [5], 6, seed=4),
    ]
    for number, piece in engine(family).extend(begun, 0.7):
        each = begun[number]
        assert len(piece.token_ids) == each.max_tokens or piece.token_ids[-1] == 1
        expected = log_probs_of(family, each.context, piece.token_ids, 0.7)
        torch.testing.assert_close(torch.tensor(piece.log_probs), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "mamba", "rwkv"])
def test_long_contexts_are_read_a_few_at_a_time_and_answered_as_if_together(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = [Begun([5, 6, 7], list(range(2, 2 + length)), 6, seed=length) for length in (4, 9, 9, 14, 5, 7, 8)]
    together = dict(engine(family).extend(begun, 1.0))
    limit, reads, read = 36, [], Decoder.read

    def counted(decoder: Decoder, prompts: Any) -> Tensor:
        reads.append(len(prompts) * max(map(len, prompts)))
        return read(decoder, prompts)

    monkeypatch.setattr(Decoder, "read", counted)
    monkeypatch.setattr(transformers, "READ_TOKENS", limit)
    apart = dict(engine(family).extend(begun, 1.0))
    assert [apart[number].token_ids for number in range(7)] == [together[number].token_ids for number in range(7)]
    # But for the one that asks what the model does with padding.
    assert max(size for size in reads if size != 2 * max(transformers.PROBE_LENGTHS)) <= limit


def test_fewer_answers_that_carry_distributions_are_at_work_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model, at_once = tiny.model("qwen3"), []
    prefill = TransformersEngine._prefill

    def counted(sampler: TransformersEngine, prompts: Any, samples: int) -> Any:
        at_once.append(len(prompts) * samples)
        return prefill(sampler, prompts, samples)

    monkeypatch.setattr(TransformersEngine, "_prefill", counted)
    # Keys and values of 16 prompts of 3 tokens and answers of 8, and nothing beside them.
    monkeypatch.setattr(transformers, "CACHE_BYTES", 16 * (3 + 8) * transformers._cache_bytes_per_token(model))
    for number in (0, 16):
        sampler = TransformersEngine(model, (NEVER,), tiny.CONTEXT, top_log_probs=number)
        list(sampler.extend([Begun([5, 6, 7 + row], [], 8, seed=row) for row in range(16)], 1.0))
    assert at_once == [16, 11, 5]


def test_evaluations_carry_no_distributions() -> None:
    sampler = TransformersEngine(tiny.model("qwen3"), (1,), tiny.CONTEXT, top_log_probs=6)
    ((rollout,),) = sampler.generate(PROMPTS[:1], 1, Sampling(1.0, 3, seed=2, top=False))
    assert rollout.top is None


def test_a_piece_ends_where_the_context_does() -> None:
    sampler = engine(context=10, stop_ids=(NEVER,))
    ((_, piece),) = sampler.extend([Begun([5] * 4, [6] * 3, 8, seed=1)], 1.0)
    assert (len(piece.token_ids), piece.finish_reason) == (3, "length")


def test_nothing_to_go_on_with_gives_nothing() -> None:
    assert list(engine().extend([], 1.0)) == []


def test_the_same_seed_gives_the_same_rollouts() -> None:
    sampling = Sampling(1.0, 8, seed=5)
    assert engine().generate(PROMPTS, 4, sampling) == engine().generate(PROMPTS, 4, sampling)


def test_another_seed_gives_other_rollouts() -> None:
    first, second = (engine().generate(PROMPTS, 4, Sampling(1.0, 8, seed)) for seed in (5, 6))
    assert first != second


def test_top_p_leaves_the_fewest_most_likely_tokens_that_have_so_much_probability() -> None:
    wanted = torch.tensor([0.05, 0.3, 0.1, 0.4, 0.15])
    logits = wanted.log().expand(2000, 5)
    draws = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for top_p, kept in ((0.4, [3]), (0.41, [1, 3]), (0.7, [1, 3]), (0.8, [1, 3, 4]), (0.9999, [0, 1, 2, 3, 4])):
        tokens = transformers._choose(logits.log_softmax(-1), Sampling(1.0, 1, seed=0, top_p=top_p), draws)
        shares = torch.bincount(tokens, minlength=5) / 2000
        expected = torch.zeros(5).index_copy(0, torch.tensor(kept), wanted[kept] / wanted[kept].sum())
        torch.testing.assert_close(shares, expected, atol=1e-3, rtol=0)


def test_rows_do_not_depend_on_which_others_are_in_the_batch() -> None:
    sampling = Sampling(1.0, 12, seed=2)
    alone = engine().generate(PROMPTS[2:3], 6, replace(sampling, first=2))[0]
    together = engine().generate(PROMPTS, 6, sampling)[2]
    assert [rollout.token_ids for rollout in alone] == [rollout.token_ids for rollout in together]


def test_small_batches_give_what_one_large_batch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(1.0, 8, seed=2)
    whole = engine().generate(PROMPTS, 4, sampling)
    monkeypatch.setattr("workers.rollouts.transformers.MAX_ROWS", 4)
    split = engine().generate(PROMPTS, 4, sampling)
    assert [[r.token_ids for r in group] for group in whole] == [[r.token_ids for r in group] for group in split]


def test_a_group_is_handed_over_as_soon_as_its_last_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, sampling = engine(stop_ids=(1, 6, 9, 12)), Sampling(1.0, 20, seed=3)
    sampler.generate(PROMPTS, 1, sampling)  # which finds out once whether the model leaves out padding
    read = 0
    forward = Decoder._forward

    def counted(*arguments: Any) -> Tensor:
        nonlocal read
        read += 1
        return forward(*arguments)

    monkeypatch.setattr(Decoder, "_forward", counted)
    handed_over = [(i, group, read) for i, group in sampler.stream(PROMPTS, 2, sampling)]
    for _, group, positions in handed_over:
        assert positions == max(len(rollout.token_ids) for rollout in group)
    assert len({positions for _, _, positions in handed_over}) > 1
    groups = sampler.generate(PROMPTS, 2, sampling)
    assert groups == [group for _, group, _ in sorted(handed_over, key=lambda each: each[0])]


def test_an_answer_ends_with_its_stop_token_and_nowhere_else() -> None:
    stops = (1, 6, 9, 12)
    ended = set()
    for group in engine(stop_ids=stops).generate(PROMPTS, 64, Sampling(1.0, 20, seed=3)):
        for rollout in group:
            assert not set(rollout.token_ids[:-1]) & set(stops)
            assert (rollout.token_ids[-1] in stops) == (rollout.finish_reason == "stop")
            ended.add(rollout.finish_reason)
    assert ended == {"stop", "length"}


def test_an_answer_without_end_has_max_tokens() -> None:
    for group in engine(stop_ids=(NEVER,)).generate(PROMPTS, 2, Sampling(1.0, 9, seed=3)):
        assert [(len(rollout.token_ids), rollout.finish_reason) for rollout in group] == [(9, "length")] * 2


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_an_answer_ends_where_the_context_does(family: str) -> None:
    groups = engine(family, stop_ids=(NEVER,), context=10).generate(PROMPTS, 2, Sampling(1.0, 30, seed=3))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        assert {len(prompt) + len(rollout.token_ids) for rollout in group} == {10}


def test_weights_are_pushed_between_samplings_only() -> None:
    trained, sampling = tiny.model("qwen3", seed=1), Sampling(1.0, 8, seed=5)
    copy = engine()
    before = copy.generate(PROMPTS, 2, sampling)
    with closing(copy.stream(PROMPTS, 2, sampling)) as stream:
        next(stream)
        with pytest.raises(RuntimeError, match="while the engine sampled"):
            copy.sync(trained.named_parameters())
    copy.sync(trained.named_parameters())
    after = copy.generate(PROMPTS, 2, sampling)
    assert after != before
    assert after == [
        [replace(rollout, version=1) for rollout in group]
        for group in TransformersEngine(trained, (1,), tiny.CONTEXT).generate(PROMPTS, 2, sampling)
    ]


def test_temperature_0_takes_the_most_likely_token() -> None:
    model = tiny.model("llama")
    (rollout,) = TransformersEngine(model, (NEVER,), tiny.CONTEXT).generate(PROMPTS[:1], 1, Sampling(0.0, 6, seed=1))[0]
    ids = list(PROMPTS[0])
    for _ in range(6):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert rollout.token_ids == ids[len(PROMPTS[0]) :]


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    draws = 4000
    model = tiny.model("qwen3")
    engine = TransformersEngine(model, (NEVER,), tiny.CONTEXT)
    drawn = [rollout.token_ids[0] for rollout in engine.generate(PROMPTS[:1], draws, Sampling(1.5, 1, seed=9))[0]]
    with torch.no_grad():
        expected = (model(torch.tensor(PROMPTS[:1])).logits[0, -1] / 1.5).softmax(-1)
    observed = torch.bincount(torch.tensor(drawn), minlength=len(expected)) / draws
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert bool(((observed - expected).abs() < 4 * deviation + 1 / draws).all())


def test_weights_that_are_not_numbers_are_noticed() -> None:
    model = tiny.model("qwen3")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteLogitsError):
        TransformersEngine(model, (1,), tiny.CONTEXT).generate(PROMPTS, 2, Sampling(1.0, 4, seed=1))
