"""Graded groups, their advantages, and how they are cut into updates."""

from dataclasses import replace
from typing import Any

import pytest

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from workers.answers import Answer
from workers.data.prompts import Prompt
from workers.graders import Grade
from workers.rollouts.engine import Rollout
from workers.training.data import batch
from workers.training.data.batch import Sample, TrainingSample


def settings(**asked: Any) -> ResolvedHyperparameters:
    return resolve(Hyperparameters(**asked), training_rows=8)


def rollout(length: int = 2) -> Rollout:
    return Rollout(list(range(length)), [-0.5] * length, "stop")


def group(*rewards: float | None) -> list[Sample]:
    grades = [Grade(reward, error=None if reward is not None else "other_error") for reward in rewards]
    return [Sample(Prompt({}, [1, 2]), rollout(), Answer("", 0), grade) for grade in grades]


def trained(prompt: int, answer: int) -> TrainingSample:
    return TrainingSample(list(range(100, 100 + prompt)), rollout(answer), 1.0)


def test_a_sample_without_a_reward_is_no_part_of_its_group() -> None:
    with_failure = batch.trainable([group(1.0, None, 0.0, None, 0.5)], settings())[0]
    without = batch.trainable([group(1.0, 0.0, 0.5)], settings())[0]
    assert [sample.advantage for sample in with_failure] == [sample.advantage for sample in without]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", [0.7071, -0.7071]),
        ("dr_grpo", [0.5, -0.5]),
        ("rloo", [1.0, -1.0]),
        ("reinforce_plus_plus_baseline", [0.9354, -0.9354]),
    ],
)
def test_advantages_compare_within_a_group(name: str, expected: list[float]) -> None:
    for samples in batch.trainable([group(1.0, 0.0), group(3.0, 2.0)], settings(advantage=name)):
        assert [sample.advantage for sample in samples] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("rewards", [(1.0, 1.0, 1.0), (0.3, None, None)])
def test_a_group_with_nothing_to_compare_has_no_advantage(rewards: tuple[float | None, ...]) -> None:
    (samples,) = batch.trainable([group(*rewards)], settings())
    assert [sample.advantage for sample in samples] == [0.0] * len(samples)


def test_a_step_without_any_reward_trains_on_nothing() -> None:
    assert batch.trainable([group(None, None), group(None)], settings()) == [[], []]


def test_answers_that_were_cut_off_count_in_their_group_and_are_not_learned_from() -> None:
    whole, cut = group(1.0, 0.0)
    cut = replace(cut, rollout=replace(cut.rollout, finish_reason="length"))
    (both,) = batch.trainable([[whole, cut]], settings())
    (one,) = batch.trainable([[whole, cut]], settings(mask_truncated=True))
    assert one == both[:1]


def test_mini_batches_of_nothing_but_cut_off_answers_are_left_out() -> None:
    cut = [replace(each, rollout=replace(each.rollout, finish_reason="length")) for each in group(1.0, 0.0)]
    assert batch.trainable([cut, group(1.0, 0.0)], settings(mask_truncated=True))[0] == []


@pytest.mark.parametrize(("length", "lost"), [(1, 0.0), (60, 0.0), (61, 0.0125), (80, 0.25), (100, 0.5), (120, 0.5)])
def test_the_reward_of_long_answers_falls_over_the_buffer(length: int, lost: float) -> None:
    h = settings(max_completion_tokens=100, overlong_buffer=40, overlong_penalty=0.5)
    assert batch.overlong(length, h) == pytest.approx(lost)
    assert batch.overlong(length, settings(max_completion_tokens=100, overlong_penalty=0.5)) == 0


def test_what_length_costs_is_part_of_the_advantage() -> None:
    short, long = group(1.0, 1.0)
    long = replace(long, rollout=rollout(10))
    h = settings(max_completion_tokens=10, overlong_buffer=5, advantage="dr_grpo")
    (trained,) = batch.trainable([[short, long]], h)
    assert [each.advantage for each in trained] == [0.5, -0.5]


def test_mini_batches_keep_groups_together_and_lose_none() -> None:
    groups = [[trained(number + 1, 1)] * 3 for number in range(7)]
    parts = batch.mini_batches(groups, 3)
    assert [len(part) for part in parts] == [6, 6, 9]
    assert [sample for part in parts for sample in part] == [sample for group in groups for sample in group]


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token-mean", 7),
        ("seq-mean-token-mean", 2),
        ("seq-mean-token-sum", 2),
        ("seq-mean-token-sum-norm", 20),
    ],
)
def test_the_normalizer_counts_the_whole_mini_batch(aggregation: str, expected: float) -> None:
    asked = Hyperparameters.model_validate({"aggregation": aggregation, "max_completion_tokens": 10})
    hyperparameters = resolve(asked, training_rows=8)
    assert batch.normalizer([trained(3, 2), trained(3, 5)], hyperparameters) == expected
