"""The projection: the bound, the solution, its derivative, and rows at the edge of what can be represented."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

import troll
from benchmarks.projection_error import KINDS, exact_kl, measure
from tests.troll import oracle
from tests.troll.cases import gradient_of
from troll.projection import project_rows

BOUND = 0.05
EXCESS = {torch.float32: 1e-6, torch.float64: 1e-9}
"""How far above the bound the KL may be, in nats; times the bound where that is above 1."""


def random_rows(
    rows: int, size: int, sharp: float, moved: float, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Old and new log-probabilities `[rows, size]`."""
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(rows, size, generator=generator, dtype=torch.float64) * sharp
    new = old + torch.randn(rows, size, generator=generator, dtype=torch.float64) * moved
    return old.log_softmax(-1).to(dtype), new.log_softmax(-1).to(dtype)


def test_no_row_of_a_million_leaves_the_region() -> None:
    checked = 0
    for seed, size in enumerate((2, 3, 5, 8, 16, 16, 24, 32, 48, 64)):
        sharp, moved = (0.1, 1.0, 3.0, 8.0)[seed % 4], (0.05, 0.5, 1.0, 3.0, 10.0)[seed % 5]
        log_old, log_new = random_rows(100_000, size, sharp, moved, seed, torch.float32)
        result = troll.project(log_old, log_new, BOUND)
        worst = exact_kl(result.log_probs, log_old).max().item()
        assert worst <= BOUND + 1e-6, f"vocabulary {size}, logits {sharp}, moved {moved}: KL {worst}"
        checked += len(log_old)
    assert checked == 1_000_000


@pytest.mark.parametrize("dtype", EXCESS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_keep_their_bound_and_have_gradients(kind: str, dtype: torch.dtype) -> None:
    """`python -m benchmarks.projection_error` does the same for a million rows of each kind."""
    excess, error, broken = measure(KINDS[kind], dtype, rows=1000, seed=1)
    assert excess <= EXCESS[dtype]
    assert error <= (1e-5 if dtype == torch.float32 else 1e-9)
    assert broken == 0


@pytest.mark.parametrize("dtype", EXCESS, ids=str)
@pytest.mark.parametrize("bound", [0.05, 1.0, 1.4692, 1.4732])
@pytest.mark.parametrize("far", [10.0, 744.0, 74400.0, 1e7])
def test_a_slot_that_is_ruled_out(dtype: torch.dtype, bound: float, far: float) -> None:
    """The KL has no end of its slope where the slot's mass vanishes, which no interpolation there survives."""
    log_old = torch.tensor([[0.229, 0.771]], dtype=torch.float64).log().to(dtype)
    log_new = torch.tensor([[0.0, -far]], dtype=dtype)
    result = troll.project(log_old, log_new, bound)
    assert result.active.item()
    assert exact_kl(result.log_probs, log_old).item() == pytest.approx(bound, abs=EXCESS[dtype] * max(bound, 1.0))
    assert result.kl_after.item() == pytest.approx(exact_kl(result.log_probs, log_old).item(), abs=2e-6)


@pytest.mark.parametrize("bound", [1e-8, 7e-7, 1e-4])
def test_bounds_below_float32s_rounding_are_kept_and_leave_gradients(bound: float) -> None:
    log_old, log_new = random_rows(400, 8, 90.0, 3.0, dtype=torch.float32)
    log_new.requires_grad_()
    result = troll.project(log_old, log_new, bound)
    assert result.active.sum() > 20
    assert (result.beta[result.active & (result.kl_before > 2e-7)] > 0).all()
    assert exact_kl(result.log_probs.detach(), log_old).max().item() <= bound + EXCESS[torch.float32]
    result.log_probs.sum().backward()
    assert log_new.grad is not None
    assert log_new.grad.isfinite().all()


@pytest.mark.parametrize("size", [2, 5, 64])
def test_steep_rows_stay_inside_the_region(size: int) -> None:
    """Near-certain rows that move far: the KL rises so steeply that a small step in beta is a large one in it."""
    log_old, log_new = random_rows(20_000, size, 14.0, 10.0, size, torch.float32)
    result = troll.project(log_old, log_new, BOUND)
    kl = exact_kl(result.log_probs, log_old)
    assert kl.max().item() <= BOUND + 1e-6
    assert kl[result.active].min().item() >= BOUND - 5e-6


def test_a_path_on_which_every_mass_vanishes() -> None:
    """Between policies that are nearly disjoint the geodesic's masses underflow before they are normalised."""
    log_old = torch.tensor([[0.0, -300.0, -300.0]], dtype=torch.float64).log_softmax(-1)
    log_new = torch.tensor([[-3000.0, 0.0, -1.0]], dtype=torch.float64).log_softmax(-1)
    for dtype in (torch.float32, torch.float64):
        result = troll.project(log_old.to(dtype), log_new.to(dtype), BOUND)
        log_pi, eta = oracle.project(log_old[0].numpy(), log_new[0].numpy(), BOUND)
        np.testing.assert_allclose(result.log_probs[0].double().exp().numpy(), np.exp(log_pi), atol=1e-5)
        assert result.beta.item() == pytest.approx(1 / (1 + eta), rel=1e-4)


@given(
    size=st.integers(2, 40),
    sharp=st.floats(0.01, 40),
    moved=st.floats(0.001, 40),
    bound=st.floats(1e-3, 2.0),
    seed=st.integers(0, 10**6),
)
@example(size=37, sharp=28.467528406196344, moved=20.234375, bound=0.001, seed=37)
def test_active_rows_end_on_the_boundary(size: int, sharp: float, moved: float, bound: float, seed: int) -> None:
    log_old, log_new = random_rows(16, size, sharp, moved, seed)
    result = troll.project(log_old, log_new, bound)
    kl = exact_kl(result.log_probs, log_old)
    assert (kl <= bound + EXCESS[torch.float64]).all()
    assert torch.allclose(kl[result.active], torch.tensor(bound, dtype=kl.dtype), rtol=1e-9)
    assert torch.equal(result.log_probs[~result.active], log_new[~result.active])


@pytest.mark.parametrize(("sharp", "moved"), [(1, 0.5), (3, 1), (6, 3), (0.1, 3), (12, 6)])
def test_solution_equals_the_oracle(sharp: float, moved: float) -> None:
    log_old, log_new = random_rows(20, 30, sharp, moved)
    result = troll.project(log_old, log_new, BOUND)
    for i in range(20):
        log_pi, eta = oracle.project(log_old[i].numpy(), log_new[i].numpy(), BOUND)
        np.testing.assert_allclose(result.log_probs[i].numpy(), log_pi, rtol=1e-9, atol=1e-9)
        assert result.beta[i].item() == pytest.approx(1 / (1 + eta), rel=1e-9)


def test_no_feasible_distribution_is_closer_to_the_new_policy() -> None:
    log_old, log_new = random_rows(40, 6, 1.0, 1.5)
    result = troll.project(log_old, log_new, BOUND)
    best = exact_kl(result.log_probs, log_new)
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-3, 1e-2, 1e-1, 1.0):
        nudge = torch.randn(500, *log_old.shape, generator=generator, dtype=torch.float64) * scale
        other = (result.log_probs + nudge).log_softmax(-1)
        feasible = exact_kl(other, log_old.expand_as(other)) <= BOUND
        assert feasible.any()
        assert (exact_kl(other, log_new.expand_as(other)) - best)[feasible].min() > -1e-12


def test_gradcheck() -> None:
    log_old, log_new = random_rows(8, 7, 1.0, 1.0, seed=3)
    # Half of the rows inside the region, half outside.
    log_new[::2] = log_old[::2] + 0.01 * log_new[::2]
    log_new.requires_grad_()
    result = troll.project(log_old, log_new, BOUND)
    assert result.active[1::2].all()
    assert not result.active[::2].any()
    torch.autograd.gradcheck(lambda x: troll.project(log_old, x, BOUND).log_probs, log_new)


def test_jacobian_equals_the_oracle() -> None:
    log_old, log_new = random_rows(6, 12, 2.0, 1.5)
    for old, new in zip(log_old, log_new, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x, old=old: troll.project(old, x, BOUND).log_probs, new)
        expected = oracle.projection_jacobian(old.numpy(), new.numpy(), BOUND)
        np.testing.assert_allclose(jacobian.numpy(), expected, rtol=1e-8, atol=1e-10)


def test_a_slot_of_several_tokens_equals_the_tokens_written_out() -> None:
    log_old, log_new = random_rows(10, 5, 1.0, 1.5)
    counts = torch.tensor([1, 1, 1, 4, 9])

    def total(rows: Tensor) -> Tensor:
        return (rows.exp() * counts).sum(-1, keepdim=True).log()

    log_old, log_new = log_old - total(log_old), (log_new - total(log_new)).requires_grad_()
    narrow = project_rows(log_old, log_new, counts.double().log().expand(10, 5), BOUND)
    (narrow.log_probs[:, 0].exp() * torch.arange(10)).sum().backward()
    wide_new = log_new.detach().repeat_interleave(counts, -1).requires_grad_()
    wide = troll.project(log_old.repeat_interleave(counts, -1), wide_new, BOUND)
    (wide.log_probs[:, 0].exp() * torch.arange(10)).sum().backward()
    assert torch.allclose(narrow.log_probs.repeat_interleave(counts, -1), wide.log_probs, atol=1e-12)
    gathered = torch.stack([part.sum(-1) for part in gradient_of(wide_new).split(counts.tolist(), -1)], -1)
    assert torch.allclose(gradient_of(log_new), gathered, atol=1e-12)


def test_identical_policies_stay_as_they_are() -> None:
    log_old, _ = random_rows(5, 10, 2.0, 0.0, dtype=torch.float32)
    result = troll.project(log_old, log_old.clone(), 1e-6)
    assert torch.equal(result.log_probs, log_old)
    assert not result.active.any()
    assert (result.beta == 1).all()
    assert (result.kl_before == 0).all()


def test_vocabulary_of_one() -> None:
    zero = torch.zeros(3, 1)
    result = troll.project(zero, zero, BOUND)
    assert torch.equal(result.log_probs, zero)
    assert not result.active.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_confident_old_policy_and_a_new_one_far_away(dtype: torch.dtype) -> None:
    """The dual variable lies far beyond 100, where a solver with a fixed bracket stops."""
    log_old = torch.tensor([[16.0, 0, 0, 0], [30.0, 0, -3, 1]], dtype=torch.float64).log_softmax(-1)
    log_new = torch.tensor([[-9000.0, 9, 3, 0], [-9000.0, 0, 5, 40]], dtype=torch.float64).log_softmax(-1)
    result = troll.project(log_old.to(dtype), log_new.to(dtype), BOUND)
    for i in range(2):
        log_pi, eta = oracle.project(log_old[i].numpy(), log_new[i].numpy(), BOUND)
        assert eta > 100
        assert result.beta[i].item() == pytest.approx(1 / (1 + eta), rel=1e-5)
        np.testing.assert_allclose(result.log_probs[i].exp().double().numpy(), np.exp(log_pi), atol=1e-6)
    assert (exact_kl(result.log_probs, log_old) <= BOUND + 1e-6).all()


def test_one_hot_old_policy_lets_nothing_move() -> None:
    log_old = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    log_new = torch.tensor([[0.2, 0.3, 0.5]]).log()
    result = troll.project(log_old, log_new, BOUND)
    assert result.active.item()
    assert torch.equal(result.log_probs.exp(), torch.tensor([[1.0, 0.0, 0.0]]))
    assert result.kl_after.item() <= BOUND


def test_a_token_only_the_new_policy_allows_is_taken_back() -> None:
    log_old = torch.tensor([[0.5, 0.5, 0.0]]).log()
    log_new = torch.tensor([[0.4, 0.4, 0.2]]).log().requires_grad_()
    result = troll.project(log_old, log_new, BOUND)
    assert result.kl_before.item() == torch.inf
    assert torch.allclose(result.log_probs.exp(), torch.tensor([[0.5, 0.5, 0.0]]))
    result.log_probs[0, 0].backward()
    # On what both allow the constraint does not bind: only the normalisation is left to differentiate.
    assert torch.allclose(gradient_of(log_new), torch.tensor([[0.5, -0.5, 0.0]]))


def test_a_token_the_new_policy_forbids_cannot_be_given_back() -> None:
    log_old = torch.tensor([[0.98, 0.01, 0.01], [0.5, 0.3, 0.2]]).log()
    log_new = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.9, 0.1]]).log().requires_grad_()
    result = troll.project(log_old, log_new, BOUND)
    assert (exact_kl(result.log_probs, log_old) <= BOUND + 1e-6).all()
    assert result.log_probs[0, 2].item() == -torch.inf
    # Half of the old mass is forbidden: every distribution in the region is infinitely far from the new policy.
    assert torch.equal(result.log_probs[1], log_old[1])
    assert result.beta[1].item() == 0
    result.log_probs[:, 1].sum().backward()
    assert gradient_of(log_new).isfinite().all()
    assert (gradient_of(log_new)[1] == 0).all()


def test_shapes_follow_the_input() -> None:
    log_old, log_new = random_rows(6, 4, 1.0, 1.0)
    flat = troll.project(log_old, log_new, BOUND)
    folded = troll.project(log_old.view(2, 3, 4), log_new.view(2, 3, 4), BOUND)
    single = troll.project(log_old[0], log_new[0], BOUND)
    assert torch.equal(folded.log_probs.view(6, 4), flat.log_probs)
    assert folded.beta.shape == (2, 3)
    assert single.beta.shape == ()
    assert torch.allclose(single.log_probs, flat.log_probs[0])
    assert troll.project(log_old[:0], log_new[:0], BOUND).log_probs.shape == (0, 4)


@pytest.mark.parametrize(
    ("log_old", "log_new", "bound", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), BOUND, r"log_new: shape \[2, 4\]"),
        (torch.zeros(2, 3).int(), torch.zeros(2, 3), BOUND, "log_old: needs a floating point dtype"),
        (torch.zeros(2, 3), torch.zeros(2, 3), 0.0, "kl_bound: needs a positive number, got 0.0"),
        (torch.zeros(2, 3), torch.zeros(2, 3), -1.0, "kl_bound"),
        (torch.zeros(2, 3), torch.zeros(2, 3), float("nan"), "kl_bound"),
        (torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [0, torch.nan, 0]]), BOUND, "log_new: row 1 holds NaN"),
        (torch.full((1, 3), -torch.inf), torch.zeros(1, 3), BOUND, "log_old: row 0"),
        (torch.full((1, 3), -torch.inf), torch.full((1, 3), -torch.inf), BOUND, "log_old: row 0"),
        (torch.tensor([[0.0, torch.nan]]), torch.tensor([[0.0, -torch.inf]]), BOUND, "log_old: row 0"),
        (torch.zeros(1, 2), torch.tensor([[0.0, torch.inf]]), BOUND, "log_new: row 0"),
        (torch.tensor([[0.0, torch.inf]]), torch.zeros(1, 2), BOUND, "log_old: row 0"),
        (torch.zeros(2, 0), torch.zeros(2, 0), BOUND, "log_old: needs a last dimension"),
        (torch.tensor(0.0), torch.tensor(0.0), BOUND, "log_old: needs a last dimension"),
    ],
)
def test_errors_name_the_argument_and_the_row(log_old: Tensor, log_new: Tensor, bound: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        troll.project(log_old, log_new, bound)
