"""How samples are laid out in rows: nothing lost, prompts read once, and no answer sees another."""

import pytest
import torch

from tests.workers.training import tiny
from workers.modeling import policy
from workers.rollouts.engine import Rollout
from workers.training.data import packing
from workers.training.data.batch import MicroBatch, TrainingSample

CPU = torch.device("cpu")
ANY_LENGTH = 1 << 20


def sample(prompt: int, answer: int, first: int = 0) -> TrainingSample:
    tokens = [first + number for number in range(answer)]
    return TrainingSample(list(range(100, 100 + prompt)), Rollout(tokens, [-0.5] * answer, "stop"), 1.0)


def pack(samples: list[TrainingSample], budget: int = 4096, longest_shared: int = ANY_LENGTH) -> list[MicroBatch]:
    return packing.micro_batches(samples, budget, CPU, longest_shared)


def read(parts: list[MicroBatch]) -> int:
    return sum(part.input_ids.numel() for part in parts)


@pytest.mark.parametrize("longest_shared", [0, ANY_LENGTH])
@pytest.mark.parametrize("budget", [1, 24, 60])
def test_micro_batches_keep_to_the_budget_and_lose_nothing(budget: int, longest_shared: int) -> None:
    samples = [sample(prompt, answer) for prompt in (3, 9, 4) for answer in (1, 30, 6)]
    parts = pack(samples, budget, longest_shared)
    assert all(part.input_ids.numel() <= budget or len(part.rollouts) == 1 for part in parts)
    assert sum(len(part.tokens) for part in parts) == sum(len(each.rollout.token_ids) for each in samples)
    assert sorted(id(rollout) for part in parts for rollout in part.rollouts) == sorted(id(s.rollout) for s in samples)


@pytest.mark.parametrize("longest_shared", [0, ANY_LENGTH])
def test_response_tokens_are_predicted_from_the_tokens_before_them(longest_shared: int) -> None:
    samples = [sample(3, 4), sample(3, 1, first=50), sample(3, 3, first=60), sample(2, 2, first=70)]
    (part,) = pack(samples, longest_shared=longest_shared)
    before, expected = part.input_ids.flatten()[part.positions], {}
    for each in samples:
        expected[tuple(each.rollout.token_ids)] = [each.prompt_ids[-1], *each.rollout.token_ids[:-1]]
    for number, rollout in enumerate(part.rollouts):
        own = part.sequence_ids == number
        assert part.tokens[own].tolist() == rollout.token_ids
        assert before[own].tolist() == expected[tuple(rollout.token_ids)]


def test_a_prompt_is_read_once_for_its_answers() -> None:
    assert read(pack([sample(40, 9)] * 6)) == 40 + 6 * 8
    assert read(pack([sample(40, 9)] * 6, longest_shared=0)) == 6 * (40 + 8)


def test_short_blocks_fill_the_rows_of_longer_ones() -> None:
    samples = [sample(20, 41), sample(19, 12), sample(18, 13), sample(17, 44)]
    assert read(pack(samples)) == 3 * 60


def test_long_answers_have_a_row_each_and_attention_that_is_plainly_causal() -> None:
    (part,) = pack([sample(40, 800), sample(40, 900)])
    assert part.input_ids.shape == (2, 939)
    assert part.layout is None


def test_a_long_prompt_is_read_once_for_short_answers() -> None:
    assert read(pack([sample(1500, 51)] * 8)) == 1500 + 8 * 50


def test_samples_longer_than_the_models_window_have_rows_of_their_own() -> None:
    assert all(part.layout is None for part in pack([sample(4, 9)] * 4, longest_shared=11))
    assert all(part.layout is not None for part in pack([sample(4, 9)] * 4, longest_shared=12))


def test_an_answer_sees_its_prompt_and_itself() -> None:
    (part,) = pack([sample(2, 3), sample(2, 3), sample(1, 2)])
    assert part.layout is not None
    assert part.layout.position_ids[0].tolist() == [0, 1, 2, 3, 2, 3]
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    assert part.layout.attention_mask()[0, 0].int().tolist() == expected


@pytest.fixture
def loaded(tmp_path_factory: pytest.TempPathFactory, family: str) -> policy.Policy:
    return policy.load(tiny.save(tmp_path_factory.mktemp(family), family), CPU)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_shared_rows_are_read_as_rows_apart(loaded: policy.Policy) -> None:
    samples = [
        TrainingSample([5, 6, 7, 8], Rollout([9, 10, 11, token], [-1.0] * 4, "stop"), 0.0) for token in (1, 2, 3)
    ] + [TrainingSample([7, 7, token], Rollout([12, token], [-1.0] * 2, "stop"), 0.0) for token in (4, 5)]
    apart = {id(s.rollout): loaded.logits(*pack([s], longest_shared=0)) for s in samples}
    for part in pack(samples):
        assert part.layout is not None
        logits = loaded.logits(part)
        for number, rollout in enumerate(part.rollouts):
            torch.testing.assert_close(logits[part.sequence_ids == number], apart[id(rollout)], atol=2e-5, rtol=0)
