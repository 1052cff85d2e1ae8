"""Statistics of an evaluation against plain counts."""

import itertools
import random
from dataclasses import replace
from statistics import fmean

import pytest

from service.graders.schemas import parse_grader
from workers.answers import Answer
from workers.data.prompts import Prompt
from workers.graders import Grade
from workers.rollouts.engine import Rollout
from workers.training.data.batch import Sample
from workers.training.reporting import evaluation

EXACT = parse_grader(
    {"type": "string_check", "name": "exact", "operation": "eq", "input": "{{sample.output_text}}", "reference": "1"},
    "grader",
)
SIMILAR = {
    "type": "multi",
    "calculate_output": "x ^ 2",
    "graders": {"x": {"type": "http", "name": "x", "url": "https://example.com/"}},
}


def sample(reward: float | None, text: str = "") -> Sample:
    grade = Grade(reward, error=None if reward is not None else "other_error")
    return Sample(Prompt({}, [1]), Rollout([1], [-0.5], "stop"), Answer(text, 0), grade)


def rows(*rewards: list[float | None]) -> list[list[Sample]]:
    return [[sample(reward) for reward in row] for row in rewards]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_all_choices_of_k_that_hold_a_right_one(k: int) -> None:
    rewards = [[1.0, 0.0, 0.0, 1.0, 0.0], [0.0] * 5, [1.0] * 5, [0.0, 0.5, 0.0, 0.0, 1.0]]
    counted = [fmean(float(max(chosen) == 1) for chosen in itertools.combinations(row, k)) for row in rewards]
    assert fmean(evaluation.passing(k, rewards, 1.0)) == pytest.approx(fmean(counted))


def test_rows_with_fewer_answers_than_k_say_nothing_of_it() -> None:
    told = evaluation.statistics(EXACT, rows([1.0, 0.0], [0.0, None]))
    assert told is not None
    assert (told.rows, told.answers_per_row) == (2, 2)
    assert told.pass_at_k == {"1": 0.25, "2": 1.0}


def test_sizes_are_the_powers_of_two_and_k() -> None:
    told = evaluation.statistics(EXACT, rows([0.0] * 6))
    assert told is not None
    assert told.pass_at_k == {"1": 0, "2": 0, "4": 0, "6": 0}


def test_nothing_passes_where_there_is_no_highest_reward() -> None:
    told = evaluation.statistics(parse_grader(SIMILAR, "grader"), rows([5.0, 7.0]))
    assert told is not None
    assert told.pass_at_k == {}
    assert told.best_at_k == 7.0


@pytest.mark.parametrize("groups", [None, [], rows([None, None], [])])
def test_nothing_is_said_of_nothing(groups: list[list[Sample]] | None) -> None:
    assert evaluation.statistics(EXACT, groups) is None


def test_the_majority_is_by_text_and_of_several_the_first() -> None:
    assert evaluation.majority([sample(0.0, "7"), sample(1.0, "8"), sample(1.0, " 8\n")]) == 1.0
    assert evaluation.majority([sample(0.25, "7"), sample(1.0, "8")]) == 0.25
    assert evaluation.majority([sample(0.0, "7"), sample(1.0, "7"), sample(1.0, "8")]) == 0.5


def test_the_majority_is_of_what_the_grader_read_where_it_read_something() -> None:
    said = [sample(1.0, "so it is 8"), sample(1.0, "8!"), sample(0.0, "7"), sample(0.0, "7")]
    read = [replace(each, grade=replace(each.grade, extracted=text)) for each, text in zip(said, "8878", strict=True)]
    assert evaluation.majority(said) == 0.0
    assert evaluation.majority(read) == pytest.approx(2 / 3)


def test_every_number_has_an_interval_around_it() -> None:
    rewards: list[list[float | None]] = [[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    told = evaluation.statistics(EXACT, rows(*rewards * 20))
    assert told is not None
    assert told.reward_mean_low < told.mean_at_k < told.reward_mean_high
    assert told.best_at_k_low < told.best_at_k < told.best_at_k_high
    assert told.majority_at_k_low < told.majority_at_k < told.majority_at_k_high
    for k, share in told.pass_at_k.items():
        low, high = told.pass_at_k_low[k], told.pass_at_k_high[k]
        assert (low or 0.0) < (share or 0.0) < (high or 0.0)


def test_the_interval_is_that_of_the_mean_of_rows() -> None:
    random_ = random.Random(3)
    means = [float(random_.random() < 0.3) for _ in range(400)]
    low, high = evaluation.interval(means)
    spread = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert (fmean(means) - low, high - fmean(means)) == pytest.approx((spread, spread), rel=0.2)
    assert evaluation.interval(means) == (low, high)


def test_equal_rows_leave_no_doubt_and_one_row_no_width() -> None:
    assert evaluation.interval([0.5] * 9) == (0.5, 0.5)
    assert evaluation.interval([0.25]) == (0.25, 0.25)


def test_many_rows_are_resampled_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    means = [n / 10 for n in range(10)]
    monkeypatch.setattr(evaluation, "CHUNK", 25)
    low, high = evaluation.interval(means)
    assert low < fmean(means) < high
