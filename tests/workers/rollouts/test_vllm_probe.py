import math

import pytest

from workers.rollouts.probe import BFLOAT16, FLOAT32, Difference, Tolerance, WeightsOutOfSyncError, compare

TRAINER = [[-1.0, -2.0, -3.0], [-0.5]]


def test_sides_that_agree_report_how_far_they_are_apart() -> None:
    engine = [[-1.0, -2.25, -3.0], [-0.75]]
    assert compare(engine, TRAINER, Tolerance(mean=0.2, worst=0.3)) == Difference(mean=0.125, worst=0.25, tokens=4)


@pytest.mark.parametrize("tolerance", [Tolerance(mean=0.1, worst=1.0), Tolerance(mean=1.0, worst=0.2)])
def test_the_mean_and_the_worst_token_are_bounded_each(tolerance: Tolerance) -> None:
    with pytest.raises(WeightsOutOfSyncError, match=r"after push 7.*4 probe tokens differ by 0.125 .* 0.25 at worst"):
        compare([[-1.0, -2.25, -3.0], [-0.75]], TRAINER, tolerance, version=7)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_log_probs_that_are_not_finite_part(value: float) -> None:
    with pytest.raises(WeightsOutOfSyncError):
        compare([[-1.0, value, -3.0], [-0.5]], TRAINER, BFLOAT16)


def test_sequences_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens per sequence"):
        compare([[-1.0, -2.0], [-0.5]], TRAINER, FLOAT32)


def test_a_probe_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens per sequence"):
        compare([[]], [[]], FLOAT32)
