import math

import pytest
import torch
from torch import Tensor

from service.jobs.hyperparameters.reinforcement import MISMATCH_CAPS, MismatchCorrection
from workers.training.optim import mismatch
from workers.training.optim.mismatch import CORRECTIONS, metrics

SAMPLER = torch.tensor([-1.0, -2.0, -0.5, -3.0, -0.1])
SHIFT = torch.tensor([0.1, 0.2, 0.4, 1.0, -0.3])
OLD = SAMPLER + SHIFT
SEQUENCES = torch.tensor([0, 0, 1, 1, 2])


def weights(
    old: Tensor, sampler: Tensor, sequence_ids: Tensor, correction: MismatchCorrection, cap: float | None = None
) -> Tensor:
    return mismatch.weights(old, sampler, sequence_ids, correction, cap or MISMATCH_CAPS[correction])


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_without_mismatch_every_weight_is_exactly_1(correction: MismatchCorrection) -> None:
    assert weights(SAMPLER, SAMPLER, SEQUENCES, correction).tolist() == [1.0] * 5


def test_no_correction_weighs_nothing() -> None:
    assert weights(OLD, SAMPLER, SEQUENCES, "none").tolist() == [1.0] * 5


def test_token_weights_are_ratios_up_to_2() -> None:
    expected = [math.exp(0.1), math.exp(0.2), math.exp(0.4), 2.0, math.exp(-0.3)]
    assert weights(OLD, SAMPLER, SEQUENCES, "token-truncate").tolist() == pytest.approx(expected, rel=1e-5)


def test_tokens_beyond_2_either_way_are_masked() -> None:
    shift = torch.tensor([0.1, 0.7, -0.7, 0.69, -0.69])
    expected = [math.exp(0.1), 0.0, 0.0, math.exp(0.69), math.exp(-0.69)]
    assert weights(SAMPLER + shift, SAMPLER, SEQUENCES, "token-mask").tolist() == pytest.approx(expected, rel=1e-5)


def test_sequence_weights_are_the_answers_ratios_up_to_3() -> None:
    expected = [math.exp(0.3)] * 2 + [3.0] * 2 + [math.exp(-0.3)]
    assert weights(OLD, SAMPLER, SEQUENCES, "sequence-truncate").tolist() == pytest.approx(expected, rel=1e-5)


def test_answers_whose_tokens_lean_one_way_are_masked_and_long_noisy_ones_are_not() -> None:
    long = 0.1 * torch.tensor([1.0, -1.0]).repeat(500)
    lean = torch.full((10,), -0.02)
    shift, answers = torch.cat([long, lean]), torch.tensor([0] * 1000 + [1] * 10)
    values = weights(shift, torch.zeros(1010), answers, "geometric-mask")
    assert values[:1000].tolist() == pytest.approx(long.exp().tolist(), rel=1e-5)
    assert values[1000:].tolist() == [0.0] * 10


def test_sequence_weights_are_the_answers_ratios_and_0_beyond_3() -> None:
    expected = [math.exp(0.3)] * 2 + [0.0] * 2 + [math.exp(-0.3)]
    assert weights(OLD, SAMPLER, SEQUENCES, "sequence-mask").tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("cap", "kept"), [(4.0, False), (4.1, True)])
def test_a_cap_of_ones_own_bounds_the_answers_ratio(cap: float, kept: bool) -> None:
    values = weights(OLD, SAMPLER, SEQUENCES, "sequence-mask", cap)  # the second answer's ratio is exp(1.4) = 4.055
    assert bool(values[2] > 0) is kept


def test_the_order_of_tokens_does_not_matter() -> None:
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = weights(OLD[order], SAMPLER[order], SEQUENCES[order], "sequence-mask")
    assert torch.allclose(shuffled, weights(OLD, SAMPLER, SEQUENCES, "sequence-mask")[order])


def test_weighted_sums_are_expectations_under_the_old_policy() -> None:
    old = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    sampler = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    values = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
    ratios = weights(old.log(), sampler.log(), torch.arange(3), "token-truncate")
    assert float((sampler * ratios * values).sum()) == pytest.approx(float((old * values).sum()))


def test_weights_carry_no_gradient() -> None:
    old = OLD.clone().requires_grad_()
    assert not weights(old, SAMPLER, SEQUENCES, "token-truncate").requires_grad


def test_a_hopeless_token_gives_finite_weights_and_metrics() -> None:
    old, sampler = torch.tensor([-1.0, 0.0]), torch.tensor([-1000.0, -math.inf])
    assert weights(old, sampler, torch.tensor([0, 1]), "token-truncate").tolist() == [2.0, 2.0]
    assert weights(old, sampler, torch.tensor([0, 1]), "sequence-mask").tolist() == [0.0, 0.0]


def test_metrics_are_those_of_the_shift() -> None:
    numbers = metrics(OLD, SAMPLER)
    shift = SHIFT.double()
    assert numbers["mismatch_abs_mean"] == pytest.approx(0.4, rel=1e-5)
    assert numbers["mismatch_abs_max"] == pytest.approx(1.0, rel=1e-5)
    assert numbers["mismatch_kl_k1"] == pytest.approx(-0.28, rel=1e-5)
    assert numbers["mismatch_kl_k3"] == pytest.approx(float((shift.exp() - 1 - shift).mean()), rel=1e-5)


def test_the_kl_estimates_are_of_the_sampler_from_the_old_policy() -> None:
    generator = torch.Generator().manual_seed(0)
    sampler, old = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
    tokens = torch.multinomial(sampler, 200_000, replacement=True, generator=generator)
    exact = float((sampler * (sampler / old).log()).sum())
    numbers = metrics(old.log()[tokens], sampler.log()[tokens])
    assert numbers["mismatch_kl_k1"] == pytest.approx(exact, rel=0.1)
    assert numbers["mismatch_kl_k3"] == pytest.approx(exact, rel=0.03)


def test_metrics_tell_what_was_masked() -> None:
    numbers = metrics(OLD, SAMPLER, weights(OLD, SAMPLER, SEQUENCES, "sequence-mask"))
    assert numbers["mismatch_fraction_masked"] == pytest.approx(0.4)
    assert (numbers["mismatch_weight_min"], numbers["mismatch_weight_max"]) == pytest.approx((0, math.exp(0.3)))


def test_metrics_tell_how_many_samples_the_weights_are_worth() -> None:
    tokens = 4096
    noise = 0.02 * torch.randn(64, tokens, generator=torch.Generator().manual_seed(0))
    sampler = torch.zeros(64 * tokens)
    answers = torch.arange(64).repeat_interleave(tokens)
    worth = {
        name: metrics(noise.flatten(), sampler, mismatch.weights(noise.flatten(), sampler, answers, name, cap))
        for name, cap in MISMATCH_CAPS.items()
    }
    shares = {name: numbers["mismatch_effective_sample_size"] for name, numbers in worth.items()}
    assert shares["none"] == 1
    assert shares["token-truncate"] == pytest.approx(1, abs=1e-3)
    assert shares["sequence-mask"] < 0.8
    nothing = metrics(OLD, SAMPLER, torch.zeros(5))
    assert nothing["mismatch_effective_sample_size"] == 0


def test_no_tokens_have_no_metrics_and_no_weights() -> None:
    empty = torch.empty(0)
    assert metrics(empty, empty) == {}
    assert weights(empty, empty, torch.empty(0, dtype=torch.long), "sequence-mask").shape == (0,)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="old, sampler"):
        metrics(OLD, SAMPLER[:3])
    with pytest.raises(ValueError, match="sequence_ids"):
        weights(OLD, SAMPLER, SEQUENCES[:3], "sequence-mask")


def test_a_cap_that_touches_equal_policies_is_refused() -> None:
    with pytest.raises(ValueError, match="cap"):
        weights(OLD, SAMPLER, SEQUENCES, "token-truncate", cap=1.0)
