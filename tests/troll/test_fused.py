"""The fused functions: equal to the plain ones, in every shape of output layer, without a tensor of all the logits."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import troll
from tests.troll.cases import gradient_of
from troll import gradient, head
from troll.gradient import Backward
from troll.objectives.troll import Support


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 512 columns at least, so that a vocabulary of thousands takes several."""
    monkeypatch.setattr(head, "_CPU_TILE", 1 << 10)


def make_layer(
    rows: int, hidden_size: int, vocabulary: int, sharp: float = 1.0, moved: float = 0.3, dtype: Any = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states of the new and the old policy, output matrix, tokens, advantages."""
    generator = torch.Generator().manual_seed(rows * vocabulary)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old, weight = normal(rows, hidden_size), normal(vocabulary, hidden_size) * sharp
    new = old + moved * normal(rows, hidden_size)
    tokens = (old @ weight.T - normal(rows, vocabulary).abs().log()).argmax(-1)
    return (
        new.to(dtype).requires_grad_(),
        old.to(dtype),
        weight.to(dtype).requires_grad_(),
        tokens,
        normal(rows).to(dtype),
    )


def distance(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-300))


def gradients(loss: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("backward", ["auto", "dense"])
@pytest.mark.parametrize(
    ("rows", "hidden_size", "vocabulary", "sharp", "cap"),
    [(1, 5, 3, 1, 2), (1, 16, 507, 1, 64), (252, 123, 507, 0.3, 64), (40, 16, 3001, 1, 5), (7, 8, 1, 1, 1)],
)
def test_fused_equals_plain(
    rows: int, hidden_size: int, vocabulary: int, sharp: float, cap: int, backward: Backward
) -> None:
    new, old_hidden, weight, tokens, advantages = make_layer(rows, hidden_size, vocabulary, sharp)
    old = troll.sparsify(old_hidden @ weight.detach().T, tokens, max_tokens=cap)
    fused_old = troll.fused_sparsify(old_hidden, weight, tokens, max_tokens=cap)
    assert torch.allclose(fused_old.dense(), old.dense(), atol=1e-10)
    plain = troll.Troll(max_tokens=cap).loss(new @ weight.T, old, tokens, advantages)
    layer = troll.Troll(max_tokens=cap, backward=backward).fused_loss(new, weight, old, tokens, advantages)
    assert torch.allclose(layer.loss, plain.loss)
    for name, value in plain.metrics.items():
        assert torch.allclose(layer.metrics[name], value), name
    pairs = zip(gradients(layer.loss, [new, weight]), gradients(plain.loss, [new, weight]), strict=True)
    for got, want in pairs:
        assert (got - want).norm() <= 1e-8 * want.norm() + 1e-14


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_output_layers_of_the_model_families(
    scale: float, softcap: float | None, with_bias: bool, temperature: float
) -> None:
    new, old_hidden, weight, tokens, advantages = make_layer(20, 12, 1300)
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(1300, generator=generator, dtype=torch.float64).requires_grad_() if with_bias else None

    def logits(hidden: Tensor) -> Tensor:
        raw = hidden @ weight.T if bias is None else hidden @ weight.T + bias
        return raw * scale if softcap is None else softcap * torch.tanh(raw * scale / softcap)

    layer: dict[str, Any] = {"bias": bias, "logit_scale": scale, "softcap": softcap}
    objective = troll.Troll(temperature=temperature, max_tokens=20)
    old = troll.fused_sparsify(old_hidden, weight, tokens, temperature=temperature, **layer, **objective.sparsity)
    plain_old = troll.sparsify(logits(old_hidden).detach(), tokens, temperature=temperature, max_tokens=20)
    assert torch.allclose(old.dense(), plain_old.dense(), atol=1e-9)
    got = objective.fused_loss(new, weight, old, tokens, advantages, **layer)
    want = troll.Troll(temperature=temperature, max_tokens=20).loss(logits(new), old, tokens, advantages)
    inputs = [new, weight] if bias is None else [new, weight, bias]
    assert torch.allclose(got.loss, want.loss)
    for left, right in zip(gradients(got.loss, inputs), gradients(want.loss, inputs), strict=True):
        assert distance(left, right) <= 1e-9


@pytest.mark.usefixtures("small_tiles")
def test_the_tops_of_all_tiles_are_merged() -> None:
    new, _, weight, tokens, _ = make_layer(30, 8, 4000)
    logits = (new @ weight.T).detach()
    for top in (1, 7, 64):
        seen = head.scan(new.detach(), head.Head(weight.detach()), tokens[:, None], top)
        values, ids = logits.topk(top)
        assert torch.allclose(seen.top_values, values)
        assert torch.equal(seen.top_ids, ids)
    assert torch.allclose(seen.peak + seen.log_total, logits.logsumexp(-1))
    assert torch.allclose(seen.entropy, torch.distributions.Categorical(logits=logits).entropy())


@pytest.mark.usefixtures("small_tiles")
def test_logits_that_rise_along_the_vocabulary() -> None:
    """Every tile beats all before it, which is the worst case of the running selection."""
    hidden = torch.ones(3, 1)
    weight = torch.arange(5000.0)[:, None] / 100
    tokens = torch.tensor([0, 2500, 4999])
    seen = head.scan(hidden, head.Head(weight), tokens[:, None], 10)
    assert torch.equal(seen.top_ids, torch.arange(4999, 4989, -1).expand(3, 10))
    assert torch.allclose(seen.peak + seen.log_total, weight.squeeze().logsumexp(0))


@pytest.mark.parametrize("chunk_size", [1, 3, 10, 1000])
def test_the_chunk_size_changes_nothing(chunk_size: int) -> None:
    new, old_hidden, weight, tokens, advantages = make_layer(10, 6, 700)
    old = troll.fused_sparsify(old_hidden, weight, tokens, chunk_size=chunk_size)
    got = troll.Troll().fused_loss(new, weight, old, tokens, advantages, chunk_size=chunk_size)
    want = troll.Troll().fused_loss(new, weight, old, tokens, advantages)
    assert torch.allclose(got.loss, want.loss)
    for left, right in zip(gradients(got.loss, [new, weight]), gradients(want.loss, [new, weight]), strict=True):
        assert torch.allclose(left, right)


@pytest.mark.usefixtures("small_tiles")
def test_float32_gradients() -> None:
    new, old_hidden, weight, tokens, advantages = make_layer(64, 32, 3000, dtype=torch.float32)
    old = troll.fused_sparsify(old_hidden, weight, tokens)
    loss = troll.Troll().fused_loss(new, weight, old, tokens, advantages).loss
    wide = [x.detach().double().requires_grad_() for x in (new, weight)]
    wide_old = troll.sparsify(old_hidden.double() @ wide[1].detach().T, tokens)
    wanted = troll.Troll().loss(wide[0] @ wide[1].T, wide_old, tokens, advantages.double()).loss
    for got, want in zip(gradients(loss, [new, weight]), gradients(wanted, wide), strict=True):
        assert got.dtype == torch.float32
        assert distance(got, want) <= 1e-4


def test_bfloat16_loses_no_more_than_a_naive_implementation() -> None:
    new, old_hidden, weight, tokens, advantages = make_layer(64, 32, 3000, dtype=torch.bfloat16)
    old = troll.fused_sparsify(old_hidden, weight, tokens)
    got = gradients(troll.Troll().fused_loss(new, weight, old, tokens, advantages).loss, [new, weight])
    naive = gradients(troll.Troll().loss((new @ weight.T).log_softmax(-1), old, tokens, advantages).loss, [new, weight])
    wide = [x.detach().double().requires_grad_() for x in (new, weight)]
    want = gradients(troll.Troll().loss(wide[0] @ wide[1].T, old, tokens, advantages.double()).loss, wide)
    for ours, theirs, exact in zip(got, naive, want, strict=True):
        assert ours.dtype == torch.bfloat16
        assert distance(ours, exact) <= distance(theirs, exact)


def test_autocast_does_not_coarsen_the_layer() -> None:
    new, old_hidden, weight, tokens, advantages = make_layer(16, 8, 900, dtype=torch.float32)
    old = troll.fused_sparsify(old_hidden, weight, tokens)
    want = troll.Troll().fused_loss(new, weight, old, tokens, advantages)
    with torch.autocast("cpu", torch.bfloat16):
        got = troll.Troll().fused_loss(new, weight, old, tokens, advantages)
        assert torch.equal(got.loss, want.loss)
        for left, right in zip(gradients(got.loss, [new, weight]), gradients(want.loss, [new, weight]), strict=True):
            assert torch.equal(left, right)


def test_a_frozen_output_matrix_gets_no_gradient() -> None:
    new, old_hidden, weight, tokens, advantages = make_layer(10, 6, 700)
    old = troll.fused_sparsify(old_hidden, weight, tokens)
    want = gradients(troll.Troll().fused_loss(new, weight, old, tokens, advantages).loss, [new])[0]
    frozen = weight.detach()
    troll.Troll().fused_loss(new, frozen, old, tokens, advantages).loss.backward()
    assert frozen.grad is None
    assert torch.equal(gradient_of(new), want)


def test_a_tied_matrix_collects_both_gradients() -> None:
    _, _, weight, tokens, advantages = make_layer(10, 6, 700)
    inputs = torch.randint(700, (10,), generator=torch.Generator().manual_seed(1))
    hidden = torch.nn.functional.embedding(inputs, weight).tanh()
    old = troll.fused_sparsify(hidden.detach() + 0.3, weight, tokens)
    got = gradients(troll.Troll().fused_loss(hidden, weight, old, tokens, advantages).loss, [weight])[0]
    plain = torch.nn.functional.embedding(inputs, weight).tanh() @ weight.T
    want = gradients(troll.Troll().loss(plain, old, tokens, advantages).loss, [weight])[0]
    assert distance(got, want) <= 1e-9


def test_a_sparse_gradient_of_a_tied_matrix_adds_up_to_the_same_bits() -> None:
    _, old_hidden, weight, tokens, advantages = make_layer(20, 16, 1300, sharp=2.0, dtype=torch.float32)
    read = torch.arange(20)
    found = []
    for sparse in (False, True):
        tied = weight.detach().clone().requires_grad_()
        hidden = torch.nn.functional.embedding(read, tied) + old_hidden
        old = troll.fused_sparsify(old_hidden, tied, tokens)
        output = troll.Troll(backward="sparse").fused_loss(
            hidden, tied, old, tokens, advantages, sparse_weight_grad=sparse
        )
        output.loss.backward()
        assert tied.grad is not None
        assert not tied.grad.is_sparse
        found.append(tied.grad)
    assert found[0].abs().sum() > 0
    assert torch.equal(*found)


def test_a_sparse_gradient_holds_the_rows_it_touches() -> None:
    new, old_hidden, weight, tokens, advantages = make_layer(5, 16, 3000, sharp=2.0)
    old = troll.fused_sparsify(old_hidden, weight, tokens)
    given = [
        gradients(
            troll.Troll(backward="sparse")
            .fused_loss(new, weight, old, tokens, advantages, sparse_weight_grad=sparse)
            .loss,
            [weight],
        )[0]
        for sparse in (False, True)
    ]
    assert given[1].is_sparse
    assert given[1]._nnz() <= 5 * 65
    assert torch.equal(given[0], given[1].to_dense())


def test_rows_that_need_the_dense_part_get_a_dense_gradient() -> None:
    new, old_hidden, weight, tokens, advantages = make_layer(20, 16, 1300)
    old = troll.fused_sparsify(old_hidden, weight, tokens)
    loss = troll.Troll(backward="dense").fused_loss(new, weight, old, tokens, advantages, sparse_weight_grad=True).loss
    assert not gradients(loss, [weight])[0].is_sparse


def test_an_unmoved_policy_has_ratio_one() -> None:
    _, old_hidden, weight, tokens, advantages = make_layer(50, 16, 5000, dtype=torch.float32)
    old = troll.fused_sparsify(old_hidden, weight, tokens)
    metrics = troll.Troll().fused_loss(old_hidden, weight, old, tokens, advantages).metrics
    assert metrics["ratio"].item() == metrics["ratio_max"].item() == 1.0
    assert metrics["kl_before_max"].item() == 0.0


@pytest.mark.parametrize("support", ["union", "old"])
def test_masked_tokens_are_not_read(support: Support) -> None:
    new, old_hidden, weight, tokens, advantages = make_layer(12, 6, 700)
    mask = torch.tensor([1, 0, 1] * 4).view(3, 4)
    rows = mask.reshape(-1).nonzero().squeeze(-1)
    old = troll.fused_sparsify(old_hidden, weight, tokens)
    want = troll.Troll(support=support).fused_loss(new[rows], weight, old[rows], tokens[rows], advantages[rows])
    expected = gradients(want.loss, [new, weight])
    broken = new.detach().clone()
    broken[mask.reshape(-1) == 0] = torch.nan
    broken.requires_grad_()
    old_masked = troll.fused_sparsify(broken.view(3, 4, 6), weight, tokens.view(3, 4), mask)
    assert (old_masked.reshape(12).ids[mask.reshape(-1) == 0] == -1).all()
    got = troll.Troll(support=support).fused_loss(
        broken.view(3, 4, 6), weight, old.reshape(3, 4), tokens.view(3, 4), advantages.view(3, 4), mask
    )
    for left, right in zip(gradients(got.loss, [broken, weight]), expected, strict=True):
        assert torch.allclose(left, right)


def test_the_old_support_equals_plain() -> None:
    new, old_hidden, weight, tokens, advantages = make_layer(12, 6, 700)
    old = troll.fused_sparsify(old_hidden, weight, tokens, max_tokens=10)
    got = troll.Troll(support="old").fused_loss(new, weight, old, tokens, advantages)
    want = troll.Troll(support="old").loss(new @ weight.T, old, tokens, advantages)
    for left, right in zip(gradients(got.loss, [new, weight]), gradients(want.loss, [new, weight]), strict=True):
        assert distance(left, right) <= 1e-9


def test_an_empty_mask_is_a_loss_of_zero() -> None:
    new, old_hidden, weight, tokens, advantages = make_layer(5, 6, 700)
    old = troll.fused_sparsify(old_hidden, weight, tokens)
    out = troll.Troll().fused_loss(new, weight, old, tokens, advantages, torch.zeros(5))
    out.loss.backward()
    assert out.loss.item() == 0
    assert torch.count_nonzero(gradient_of(new)) == 0
    assert torch.count_nonzero(gradient_of(weight)) == 0


def test_a_head_with_minus_infinity_in_its_bias() -> None:
    """Padded vocabularies mask their surplus rows so."""
    new, old_hidden, weight, tokens, advantages = make_layer(20, 6, 700)
    bias = torch.zeros(800, dtype=torch.float64)
    bias[700:] = -torch.inf
    wide = torch.cat([weight, torch.ones(100, 6, dtype=torch.float64)])
    narrow_old = troll.fused_sparsify(old_hidden, weight, tokens, max_tokens=9)
    old = troll.fused_sparsify(old_hidden, wide, tokens, bias=bias, max_tokens=9)
    assert torch.equal(old.ids, narrow_old.ids)
    out = troll.Troll(max_tokens=9, backward="dense").fused_loss(new, wide, old, tokens, advantages, bias=bias)
    assert torch.isfinite(out.metrics["entropy"])
    assert all(torch.isfinite(gradient).all() for gradient in gradients(out.loss, [new, weight]))


class Allocations(TorchDispatchMode):
    """Remembers the largest number of elements any operation returned."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return result


@pytest.mark.parametrize("backward", ["sparse", "dense"])
def test_no_tensor_holds_all_the_logits(backward: Backward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_CPU_TILE", 1 << 15)
    rows, vocabulary, hidden_size = 60, 20_000, 4
    new, old_hidden, weight, tokens, advantages = make_layer(rows, hidden_size, vocabulary, dtype=torch.float32)
    with Allocations() as seen:
        old = troll.fused_sparsify(old_hidden, weight, tokens)
        out = troll.Troll(backward=backward).fused_loss(new, weight, old, tokens, advantages)
        gradients(out.loss, [new, weight])
    assert seen.largest <= max(vocabulary * hidden_size, 1 << 15)


def remainders(new: Tensor, weight: Tensor, loss: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each backward pass treats as dense."""
    counts: list[int] = []
    original = gradient._pull

    def counted(*arguments: Any) -> Any:
        pull = original(*arguments)
        counts.append(len(pull.dense_rows))
        return pull

    monkeypatch.setattr(gradient, "_pull", counted)
    gradients(loss, [new, weight])
    return counts


def test_rows_whose_remainder_vanishes_stay_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the size where the dense part is free, a sharp policy that moved a little touches kept rows only."""
    new, old_hidden, weight, tokens, advantages = make_layer(20, 8, 20_000, 2.0, 0.02, torch.float32)
    old = troll.fused_sparsify(old_hidden, weight, tokens)
    loss = troll.Troll().fused_loss(new, weight, old, tokens, advantages).loss
    touched = gradients(loss, [weight])[0].abs().sum(-1).count_nonzero()
    assert touched <= 20 * 65
    loss = troll.Troll().fused_loss(new, weight, old, tokens, advantages).loss
    assert remainders(new, weight, loss, monkeypatch) == [0]


def test_rows_whose_remainder_shows_get_the_dense_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap of two tokens, and another two for the new policy, which has turned around."""
    _, old_hidden, weight, tokens, advantages = make_layer(20, 8, 20_000, 0.5, 0.0, torch.float32)
    new = (-old_hidden).requires_grad_()
    old = troll.fused_sparsify(old_hidden, weight, tokens, max_tokens=2)
    loss = troll.Troll(max_tokens=2).fused_loss(new, weight, old, tokens, advantages).loss
    assert remainders(new, weight, loss, monkeypatch)[0] > 0
    exact = troll.Troll(max_tokens=2, backward="dense").fused_loss(new, weight, old, tokens, advantages).loss
    loss = troll.Troll(max_tokens=2).fused_loss(new, weight, old, tokens, advantages).loss
    for got, want in zip(gradients(loss, [new, weight]), gradients(exact, [new, weight]), strict=True):
        assert distance(got, want) <= 1e-3


HIDDEN, WEIGHT = torch.randn(2, 3, 4), torch.randn(10, 4)
TOKENS, ADVANTAGES = torch.zeros(2, 3, dtype=torch.long), torch.ones(2)
OLD = troll.sparsify(HIDDEN @ WEIGHT.T, TOKENS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": WEIGHT[:, :3]}, r"weight: shape \[10, 3\] does not match hidden"),
        ({"weight": WEIGHT.double()}, "weight: dtype torch.float64 does not match hidden"),
        ({"weight": WEIGHT.int()}, "weight: needs a floating point dtype"),
        ({"weight": WEIGHT[:9]}, "old: vocabulary of 10 does not match the model's 9"),
        ({"bias": torch.zeros(9)}, r"bias: shape \[9\] does not match weight"),
        ({"hidden": HIDDEN.int()}, "hidden: needs a floating point dtype"),
        ({"hidden": HIDDEN[:, :2]}, "tokens: shape"),
        ({"hidden": HIDDEN.index_fill(1, torch.tensor(1), torch.nan)}, "hidden: row 1 holds NaN or infinity"),
        ({"softcap": 0.0}, "softcap: needs a positive number"),
        ({"logit_scale": -1.0}, "logit_scale: needs a positive number"),
        ({"chunk_size": 0}, "chunk_size: needs at least 1, got 0"),
    ],
)
def test_errors_name_the_argument_and_the_row(change: dict[str, Any], message: str) -> None:
    valid: dict[str, Any] = {"hidden": HIDDEN, "weight": WEIGHT, "old": OLD, "tokens": TOKENS, "advantages": ADVANTAGES}
    with pytest.raises(ValueError, match=message):
        troll.Troll().fused_loss(**valid | change)
