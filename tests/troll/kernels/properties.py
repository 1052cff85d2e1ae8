"""What every kernel promises: the plain version's numbers.

`test_interpreted.py` runs this file under Triton's interpreter, `test_on_gpu.py` on a GPU.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import troll
from troll import kernels, sparse, terms
from troll.kernels import selection
from troll.objectives.troll import Support
from troll.rows import SparseLogProbs, Tail

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# vocabulary, sharpness of the old logits, how far the new ones moved, max_tokens
SHAPES = [(8, 1.0, 0.1, 8), (40, 3.0, 1.0, 6), (200, 6.0, 2.0, 16), (130, 12.0, 8.0, 32), (7, 2.0, 1.0, 1)]
BOUND = 0.05
DEFAULT = 1e-12


@pytest.fixture(autouse=True)
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter sorts one number at a time: short segments make that bearable, and rows of several blocks."""
    if INTERPRETED and "real_blocks" not in request.fixturenames:
        for name, value in {"_SEGMENT": 8, "_SEGMENTS": 4, "_BLOCK": 32, "_GROUP": 2}.items():
            monkeypatch.setattr(selection, name, value)


@pytest.fixture
def real_blocks() -> None:
    """Blocks of the size that GPUs get, also under the interpreter."""


def make_logits(rows: int, vocabulary: int, sharp: float, moved: float) -> tuple[Tensor, Tensor, Tensor]:
    """Old logits, new logits, tokens sampled from the old policy."""
    generator = torch.Generator().manual_seed(vocabulary)
    old = torch.randn(rows, vocabulary, generator=generator) * sharp
    new = old + torch.randn(rows, vocabulary, generator=generator) * moved
    tokens = old.softmax(-1).multinomial(1, generator=generator).squeeze(-1)
    return old.to(DEVICE), new.to(DEVICE), tokens.to(DEVICE)


def plain_scan(logits: Tensor, ids: Tensor, top: int, temperature: float) -> tuple[Tensor, ...]:
    """A scan by the shortest way, in float64."""
    scaled = logits.double() / temperature
    log_probs = scaled.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs.clamp(min=-1e300)).sum(-1)
    values, indices = scaled.topk(top, -1)
    at_ids = scaled.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
    peak = scaled.amax(-1)
    return peak, scaled.logsumexp(-1) - peak, entropy, at_ids, values, indices


def assert_same_scan(got: tuple[Tensor, ...], want: tuple[Tensor, ...], logits: Tensor, temperature: float) -> None:
    names = ("peak", "log_total", "entropy", "values", "top_values")
    for name, left, right in zip(names, got, want, strict=False):
        torch.testing.assert_close(left.double(), right, rtol=2e-6, atol=2e-6, msg=partial("{}: {}".format, name))
    named = (logits.double() / temperature).gather(1, got[5].clamp(min=0))
    finite = want[4] > -torch.inf
    torch.testing.assert_close(named[finite], want[4][finite], rtol=2e-6, atol=2e-6)


def old_rows(logits: Tensor, tokens: Tensor, cap: int, tail: Tail) -> SparseLogProbs:
    """The old policy's rows from the plain version, whatever the device."""
    return troll.sparsify(logits.cpu(), tokens.cpu(), max_tokens=cap, tail=tail).to(logits.device)


def kept_rows(logits: Tensor, tokens: Tensor, cap: int) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities `[M, K]` the plain version keeps."""
    kept = sparse.select_from_logits(
        logits.cpu(), torch.arange(len(tokens)), tokens.cpu(), max_tokens=cap, dropped_mass=1e-5, temperature=1.0
    )
    return kept.ids.to(logits.device), kept.log_probs.to(logits.device)


def kernel_terms(ids: Tensor, log_probs: Tensor, old: SparseLogProbs, tail: Tail = "constant") -> terms.Terms:
    columns = (old.ids, old.log_probs, old.tail_log_prob)
    return terms.Terms(*kernels.token_terms(ids, log_probs, *columns, old.vocabulary_size, BOUND, DEFAULT, tail))


def plain_terms(ids: Tensor, log_probs: Tensor, old: SparseLogProbs, tail: Tail = "constant") -> terms.Terms:
    """The plain version in the precision of `log_probs`, on the CPU."""
    wide = SparseLogProbs(
        old.ids,
        old.log_probs.to(log_probs.dtype),
        old.tail_log_prob.to(log_probs.dtype),
        old.kept_mass,
        old.token_log_probs,
        old.vocabulary_size,
    ).to("cpu")
    return terms.token_terms(ids.cpu(), log_probs.cpu(), wide, BOUND, DEFAULT, tail)


@pytest.mark.parametrize(("vocabulary", "sharp", "moved", "cap"), SHAPES)
def test_scan_equals_the_plain_version(vocabulary: int, sharp: float, moved: float, cap: int) -> None:
    _, logits, tokens = make_logits(2, vocabulary, sharp, moved)
    top, ids = min(cap, vocabulary), tokens.unsqueeze(-1)
    got = kernels.scan_logits(logits, torch.arange(2, device=DEVICE), ids, top, 0.7)
    assert_same_scan(got, plain_scan(logits, ids, top, 0.7), logits, 0.7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scan_takes_half_precision(dtype: torch.dtype) -> None:
    _, logits, tokens = make_logits(2, 40, 3.0, 1.0)
    logits, ids = logits.to(dtype), tokens.unsqueeze(-1)
    got = kernels.scan_logits(logits, torch.arange(2, device=DEVICE), ids, 4, 1.0)
    assert_same_scan(got, plain_scan(logits, ids, 4, 1.0), logits, 1.0)


def test_scan_of_some_rows_reads_those_rows() -> None:
    _, logits, tokens = make_logits(5, 40, 3.0, 1.0)
    rows, ids = torch.tensor([3, 0], device=DEVICE), tokens[:2].unsqueeze(-1)
    got = kernels.scan_logits(logits, rows, ids, 4, 1.0)
    assert_same_scan(got, plain_scan(logits[rows], ids, 4, 1.0), logits[rows], 1.0)


def test_scan_of_tiles_equals_a_scan_of_the_whole() -> None:
    _, logits, _ = make_logits(3, 100, 5.0, 1.0)
    ids = torch.tensor([[0, 99, -1], [40, 41, 42], [-1, -1, 7]], device=DEVICE)
    scanner = kernels.scanner(ids, 6)
    for start, stop in ((0, 41), (41, 42), (42, 100)):
        scanner.see(logits[:, start:stop].contiguous(), start)
    assert_same_scan(scanner.result(), plain_scan(logits, ids, 6, 1.0), logits, 1.0)


@pytest.mark.usefixtures("real_blocks")
def test_scan_with_blocks_of_real_size_equals_the_plain_version() -> None:
    _, logits, tokens = make_logits(1, 4500, 3.0, 1.0)
    ids = tokens.unsqueeze(-1)
    got = kernels.scan_logits(logits, torch.tensor([0], device=DEVICE), ids, 2, 1.0)
    assert_same_scan(got, plain_scan(logits, ids, 2, 1.0), logits, 1.0)


def test_scan_without_a_top_reads_values_only() -> None:
    _, logits, tokens = make_logits(2, 40, 3.0, 1.0)
    got = kernels.scan_logits(logits, torch.arange(2, device=DEVICE), tokens.unsqueeze(-1), 0, 1.0)
    want = plain_scan(logits, tokens.unsqueeze(-1), 1, 1.0)
    torch.testing.assert_close(got[3].double(), want[3])
    assert got[4].shape == got[5].shape == (2, 0)


def test_scan_takes_logits_of_minus_infinity() -> None:
    _, logits, tokens = make_logits(3, 50, 3.0, 1.0)
    logits[0, 5:] = -torch.inf
    logits[1, :40] = -torch.inf
    logits[2, ::2] = -torch.inf
    ids = tokens.unsqueeze(-1)
    got = kernels.scan_logits(logits, torch.arange(3, device=DEVICE), ids, 8, 1.0)
    assert_same_scan(got, plain_scan(logits, ids, 8, 1.0), logits, 1.0)


def test_scan_of_a_steep_row_keeps_its_precision() -> None:
    logits = torch.linspace(-300.0, 900.0, 96, device=DEVICE).flip(0).reshape(1, -1)
    ids = torch.tensor([[50]], device=DEVICE)
    got = kernels.scan_logits(logits, torch.tensor([0], device=DEVICE), ids, 8, 1.0)
    assert_same_scan(got, plain_scan(logits, ids, 8, 1.0), logits, 1.0)


def test_equal_logits_are_told_apart_by_their_ids() -> None:
    logits = torch.zeros(1, 70, device=DEVICE)
    got = kernels.scan_logits(logits, torch.tensor([0], device=DEVICE), torch.tensor([[3]], device=DEVICE), 4, 1.0)
    assert len(set(got[5][0].tolist())) == 4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_shows_in_its_total(bad: float) -> None:
    _, logits, tokens = make_logits(2, 50, 1.0, 1.0)
    logits[1, 20] = bad
    got = kernels.scan_logits(logits, torch.arange(2, device=DEVICE), tokens.unsqueeze(-1), 4, 1.0)
    assert torch.isfinite(got[0] + got[1]).tolist() == [True, False]


@pytest.mark.parametrize("spare", [0, 3])
@pytest.mark.parametrize(("vocabulary", "sharp", "moved", "cap"), SHAPES)
def test_keep_equals_the_plain_version(vocabulary: int, sharp: float, moved: float, cap: int, spare: int) -> None:
    _, logits, tokens = make_logits(6, vocabulary, sharp, moved)
    log_probs = logits.log_softmax(-1)
    values, ids = log_probs.topk(min(cap, vocabulary), -1)
    token_values = log_probs.gather(1, tokens.unsqueeze(-1)).squeeze(-1)
    got = kernels.keep(ids, values, tokens, token_values, 1e-5, spare)
    want = sparse.keep(ids.cpu(), values.cpu(), tokens.cpu(), token_values.cpu(), 1e-5, spare)
    assert torch.equal(got[0].cpu(), want[0])
    assert torch.equal(got[1].cpu(), want[1])


@pytest.mark.parametrize("tail", ["constant", "mass"])
@pytest.mark.parametrize(("vocabulary", "sharp", "moved", "cap"), SHAPES)
def test_normalise_equals_the_plain_version(vocabulary: int, sharp: float, moved: float, cap: int, tail: Tail) -> None:
    _, logits, tokens = make_logits(4, vocabulary, sharp, moved)
    ids, log_probs = kept_rows(logits, tokens, cap)
    got = kernels.normalise(ids, log_probs, vocabulary, DEFAULT, tail)
    want = sparse.normalise(ids.cpu(), log_probs.cpu().double(), vocabulary, DEFAULT, tail)
    has_tail = (ids >= 0).sum(-1).cpu() < vocabulary
    torch.testing.assert_close(got[0].cpu().double(), want[0], rtol=2e-7, atol=2e-7)
    torch.testing.assert_close(got[1].cpu().double()[has_tail], want[1][has_tail], rtol=2e-7, atol=2e-7)
    torch.testing.assert_close(got[2].cpu().double(), want[2], rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("tail", ["constant", "mass"])
@pytest.mark.parametrize(("vocabulary", "sharp", "moved", "cap"), SHAPES)
def test_terms_equal_the_plain_version(vocabulary: int, sharp: float, moved: float, cap: int, tail: Tail) -> None:
    old_logits, logits, tokens = make_logits(4, vocabulary, sharp, moved)
    ids, log_probs = kept_rows(logits, tokens, cap)
    old = old_rows(old_logits, tokens, cap, tail)
    got, want = kernel_terms(ids, log_probs, old, tail), plain_terms(ids, log_probs.double(), old, tail)
    assert torch.equal(got.active.cpu(), want.active)
    for name in ("log_ratio", "regression", "beta", "kl_before", "kl_after", "kept_mass"):
        left, right = getattr(got, name).cpu().double(), getattr(want, name)
        torch.testing.assert_close(left, right, rtol=1e-6, atol=5e-7, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("term", ["log_ratio", "regression"])
@pytest.mark.parametrize("tail", ["constant", "mass"])
@pytest.mark.parametrize(("vocabulary", "sharp", "moved", "cap"), SHAPES)
def test_gradients_equal_the_plain_version(
    vocabulary: int, sharp: float, moved: float, cap: int, tail: Tail, term: str
) -> None:
    old_logits, logits, tokens = make_logits(4, vocabulary, sharp, moved)
    ids, log_probs = kept_rows(logits, tokens, cap)
    old = old_rows(old_logits, tokens, cap, tail)
    leaf, wide_leaf = log_probs.clone().requires_grad_(), log_probs.double().cpu().requires_grad_()
    weights = torch.arange(1.0, 5.0)
    (getattr(kernel_terms(ids, leaf, old, tail), term) @ weights.to(DEVICE)).backward()
    (getattr(plain_terms(ids, wide_leaf, old, tail), term) @ weights.double()).backward()
    assert leaf.grad is not None
    assert wide_leaf.grad is not None
    # Empty slots have no gradient of their own: what stands there is masked by whoever passes it on.
    got, want = (x.cpu().double().where(ids.cpu() >= 0, 0.0) for x in (leaf.grad, wide_leaf.grad))
    assert float((got - want).norm()) <= 1e-6 * float(want.norm())


def test_a_policy_that_has_not_moved_has_a_ratio_of_one_and_no_pull() -> None:
    logits, _, tokens = make_logits(4, 60, 4.0, 0.0)
    ids, log_probs = kept_rows(logits, tokens, 8)
    rows = kernels.normalise(ids, log_probs, 60, DEFAULT, "constant")
    old = SparseLogProbs(ids.int(), rows[0], rows[1], rows[2], log_probs[:, 0], 60)
    leaf = log_probs.clone().requires_grad_()
    got = kernel_terms(ids, leaf, old)
    got.regression.sum().backward()
    assert got.log_ratio.tolist() == got.kl_before.tolist() == got.regression.tolist() == [0.0] * 4
    assert leaf.grad is not None
    assert not leaf.grad.any()


def test_the_bound_holds_where_a_confident_old_policy_meets_one_that_moved_far() -> None:
    old_logits = torch.tensor([[30.0, 0, 0, 0], [60.0, 0, 1, 0], [0, 0, 0, 0], [15.0, 14, -40, 0]], device=DEVICE)
    logits = torch.tensor([[0, 30.0, 0, 0], [-20, 0, 0, 60.0], [200, 0, 0, 0], [-90, 14, 90, 0]], device=DEVICE)
    tokens = torch.tensor([0, 0, 1, 1], device=DEVICE)
    ids, log_probs = kept_rows(logits, tokens, 4)
    old = old_rows(old_logits, tokens, 4, "constant")
    got, want = kernel_terms(ids, log_probs, old), plain_terms(ids, log_probs.double(), old)
    assert got.active.all()
    assert float(got.kl_after.max()) <= BOUND + 1e-8
    torch.testing.assert_close(got.beta.cpu().double(), want.beta, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("bound", [1e-8, 0.05, 1.0, 1.4692])
def test_the_bound_is_met_where_the_divergence_has_an_infinite_slope(bound: float) -> None:
    """A slot that the new policy all but rules out: the KL's slope has no end where its mass vanishes."""
    old_logits = torch.tensor([[0.229, 0.771]] * 3, device=DEVICE).log()
    logits = torch.tensor([[0.0, -20.0], [0.0, -744.0], [0.0, -74400.0]], device=DEVICE)
    tokens = torch.tensor([0, 1, 0], device=DEVICE)
    ids, log_probs = kept_rows(logits, tokens, 2)
    old = old_rows(old_logits, tokens, 2, "constant")
    leaf = log_probs.clone().requires_grad_()
    columns = (old.ids, old.log_probs, old.tail_log_prob)
    got = terms.Terms(*kernels.token_terms(ids, leaf, *columns, 2, bound, DEFAULT, "constant"))
    got.log_ratio.sum().backward()
    assert got.active.all()
    first = torch.where(tokens == 0, got.log_ratio.exp() * 0.229, 1 - got.log_ratio.exp() * 0.771).double().cpu()
    measured = first * (first / 0.229).log() + (1 - first) * ((1 - first) / 0.771).clamp(min=1e-300).log()
    torch.testing.assert_close(got.kl_after.cpu().double(), torch.full((3,), bound).double(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(measured, torch.full((3,), bound).double(), rtol=2e-6, atol=2e-6)
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_a_token_the_new_policy_rules_out_has_a_ratio_of_zero() -> None:
    old_logits = torch.tensor([[-4.0, 1, 0, 2, 0, 1], [-4.0, 1, 0, 2, 0, 1]], device=DEVICE)
    logits, tokens = old_logits.clone(), torch.tensor([0, 1], device=DEVICE)
    logits[0, 0] = -torch.inf
    ids, log_probs = kept_rows(logits, tokens, 6)
    old = old_rows(old_logits, tokens, 6, "constant")
    leaf = log_probs.clone().requires_grad_()
    got, want = kernel_terms(ids, leaf, old), plain_terms(ids, log_probs.double(), old)
    got.log_ratio.exp().sum().backward()
    assert got.log_ratio[0] == -torch.inf
    torch.testing.assert_close(got.log_ratio.detach().cpu().double(), want.log_ratio, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.beta.cpu().double(), want.beta, rtol=1e-6, atol=1e-6)
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_a_row_no_projection_brings_inside_comes_back_as_the_old_policy() -> None:
    old_logits = torch.tensor([[2.0, 1.0, 0.0, 0.0]], device=DEVICE)
    logits = torch.tensor([[-torch.inf, 1.0, 0.0, 0.0]], device=DEVICE)
    tokens = torch.tensor([0], device=DEVICE)
    ids, log_probs = kept_rows(logits, tokens, 4)
    got = kernel_terms(ids, log_probs, old_rows(old_logits, tokens, 4, "constant"))
    assert [x.item() for x in (got.log_ratio, got.beta, got.kl_after, got.active)] == [0.0, 0.0, 0.0, True]


def test_rows_of_one_kept_token_have_a_tail_to_move_against() -> None:
    old_logits = torch.tensor([[2.0, 0, 0, 0], [0.0, 0, 0, 3]], device=DEVICE)
    logits = torch.tensor([[0.0, 0, 5, 0], [0.0, 0, 0, 3]], device=DEVICE)
    tokens = torch.tensor([0, 3], device=DEVICE)
    ids, log_probs = kept_rows(logits, tokens, 1)
    old = old_rows(old_logits, tokens, 1, "mass")
    got, want = kernel_terms(ids, log_probs, old, "mass"), plain_terms(ids, log_probs.double(), old, "mass")
    torch.testing.assert_close(got.log_ratio.cpu().double(), want.log_ratio, rtol=1e-6, atol=1e-6)
    assert got.active.cpu().tolist() == want.active.tolist() == [True, False]


def test_nothing_selected_gives_nothing() -> None:
    none = torch.empty(0, 5, device=DEVICE)
    ids, row = none.long(), none[:, 0]
    old = SparseLogProbs(ids.int(), none, row, row, row, 9)
    assert kernel_terms(ids, none, old).log_ratio.shape == (0,)
    assert kernels.keep(ids, none, row.long(), row, 1e-5)[0].shape == (0, 6)
    assert kernels.scan_logits(torch.zeros(3, 9, device=DEVICE), row.long(), ids, 4, 1.0)[4].shape == (0, 4)


def choose_kernels(monkeypatch: pytest.MonkeyPatch, chosen: bool) -> None:
    monkeypatch.setattr(kernels, "available", lambda tensor, slots=0: chosen)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels' functions, as they are called."""
    calls: list[str] = []

    def recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(name)
            return function(*args)

        return call

    for name in ("scan_logits", "scanner", "keep", "normalise", "token_terms"):
        monkeypatch.setattr(kernels, name, recorded(name, getattr(kernels, name)))
    return calls


@pytest.mark.parametrize("tail", ["constant", "mass"])
@pytest.mark.parametrize("support", ["union", "old"])
def test_the_whole_loss_equals_the_plain_version(tail: Tail, support: Support, monkeypatch: pytest.MonkeyPatch) -> None:
    old_logits, logits, tokens = make_logits(4, 40, 4.0, 1.0)
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])

    def loss_and_gradient(device: str, with_kernels: bool) -> tuple[Tensor, Tensor]:
        choose_kernels(monkeypatch, with_kernels)
        leaf = logits.to(device, copy=True).requires_grad_()
        chosen = tokens.to(device)
        old = troll.sparsify(old_logits.to(device), chosen, max_tokens=4, tail=tail)
        out = troll.Troll(max_tokens=4, tail=tail, support=support).loss(leaf, old, chosen, advantages.to(device))
        out.loss.backward()
        assert leaf.grad is not None
        return out.loss.detach().cpu(), leaf.grad.cpu()

    calls = count_calls(monkeypatch)
    got, want = loss_and_gradient(DEVICE, True), loss_and_gradient("cpu", False)
    assert {"scan_logits", "normalise", "token_terms"} <= set(calls)
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-6)
    assert float((got[1] - want[1]).norm()) <= 1e-5 * float(want[1].norm())


def test_the_fused_loss_equals_the_plain_version(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(4, 8, generator=generator), torch.randn(60, 8, generator=generator)
    moved = hidden + 0.5 * torch.randn(4, 8, generator=generator)
    tokens, advantages = torch.tensor([3, 50, 20, 9]), torch.tensor([1.0, -1.0, 0.5, -0.5])

    def loss_and_gradients(device: str, with_kernels: bool) -> list[Tensor]:
        choose_kernels(monkeypatch, with_kernels)
        states, matrix = (x.to(device, copy=True).requires_grad_() for x in (moved, weight))
        old = troll.fused_sparsify(hidden.to(device), weight.to(device), tokens.to(device), max_tokens=8)
        out = troll.Troll(max_tokens=8).fused_loss(states, matrix, old, tokens.to(device), advantages.to(device))
        return [out.loss.detach().cpu(), *(x.cpu() for x in torch.autograd.grad(out.loss, [states, matrix]))]

    calls = count_calls(monkeypatch)
    for got, want in zip(loss_and_gradients(DEVICE, True), loss_and_gradients("cpu", False), strict=True):
        assert float((got - want).norm()) <= 1e-5 * float(want.norm())
    assert {"scanner", "keep", "normalise", "token_terms"} <= set(calls)
