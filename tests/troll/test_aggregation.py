"""Aggregation against sums written out, and the reference estimators against the divergence they estimate."""

from typing import Any, cast

import pytest
import torch

from troll.aggregation import Aggregation, aggregate, segments_of
from troll.reference import Reference, reference_kl

VALUES = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0])
ROWS = torch.tensor([0, 1, 2, 4, 5])  # of a [2, 4] batch: three tokens of the first sequence, two of the second


@pytest.mark.parametrize(
    ("mode", "total", "own_count"),
    [
        ("token-mean", 36.0, 5),
        ("seq-mean-token-mean", 2.0 + 15.0, 2),
        ("seq-mean-token-sum", 36.0, 2),
        ("seq-mean-token-sum-norm", 36.0, 8),
    ],
)
def test_modes(mode: Aggregation, total: float, own_count: int) -> None:
    segments = segments_of(ROWS, torch.Size([2, 4]), None)
    assert aggregate(VALUES, segments, mode).item() == pytest.approx(total / own_count)
    assert aggregate(VALUES, segments, mode, 100.0).item() == pytest.approx(total / 100)
    assert aggregate(VALUES, segments, mode, torch.tensor(100)).item() == pytest.approx(total / 100)


def test_packed_sequences_need_not_be_numbered_from_zero() -> None:
    names = torch.tensor([40, 40, 40, 0, 7, 7, 0, 0])
    segments = segments_of(torch.tensor([0, 1, 2, 4, 5]), torch.Size([8]), names)
    assert segments.number == 2
    assert aggregate(VALUES, segments, "seq-mean-token-mean").item() == pytest.approx(8.5)


def test_packed_tokens_have_no_padded_length() -> None:
    segments = segments_of(torch.arange(5), torch.Size([5]), torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match="normalizer: seq-mean-token-sum-norm needs one for packed tokens"):
        aggregate(VALUES, segments, "seq-mean-token-sum-norm")


def test_nothing_aggregates_to_zero() -> None:
    for mode in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"):
        segments = segments_of(ROWS[:0], torch.Size([2, 4]), None)
        assert aggregate(VALUES[:0], segments, mode).item() == 0.0


@pytest.mark.parametrize(("names", "message"), [(torch.zeros(8), "needs an integer"), (torch.zeros(7).int(), "shape")])
def test_errors_of_sequence_ids(names: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"sequence_ids: {message}"):
        segments_of(ROWS, torch.Size([8]), names)


def test_k1_and_k3_are_unbiased_and_k2s_gradient_is() -> None:
    """Expectations under the policy, computed exactly by weighting every token."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(-1)
    log_probs = logits.log_softmax(-1)
    exact = (log_probs.exp() * (log_probs - reference)).sum()
    wanted = torch.autograd.grad(exact, logits, retain_graph=True)[0]
    weights = log_probs.exp().detach()
    for estimator in ("k1", "k3"):
        assert torch.allclose((weights * reference_kl(log_probs, reference, estimator)).sum(), exact)
    assert (reference_kl(log_probs, reference, "k3") >= 0).all()
    estimated = {
        name: torch.autograd.grad(
            (weights * reference_kl(log_probs, reference, name)).sum(), logits, retain_graph=True
        )[0]
        for name in ("k1", "k2")
    }
    assert torch.allclose(estimated["k2"], wanted)
    # Why jobs do not take it in the loss.
    assert torch.allclose(estimated["k1"], torch.zeros_like(wanted))


def test_k3_of_a_dropped_token_stays_finite() -> None:
    value = reference_kl(torch.tensor([-500.0]), torch.tensor([-1.0]))
    assert torch.isfinite(value).all()


def test_errors_of_the_reference() -> None:
    with pytest.raises(ValueError, match=r"reference.coefficient: needs a number of at least 0"):
        Reference(torch.zeros(3), -1.0)
    with pytest.raises(ValueError, match=r"reference.estimator: 'k4' is not one of"):
        Reference(torch.zeros(3), 0.1, cast(Any, "k4"))
    with pytest.raises(ValueError, match="estimator: 'k4'"):
        reference_kl(torch.zeros(3), torch.zeros(3), cast(Any, "k4"))
