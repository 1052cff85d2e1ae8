"""Cross-entropy, plain and fused: torch's values and gradients, under any split of the batch."""

import pytest
import torch
from torch import Tensor

import troll
from troll import head


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 512 columns, so that the vocabulary takes several."""
    monkeypatch.setattr(head, "_CPU_TILE", 1 << 10)


ROWS, HIDDEN, VOCABULARY = 30, 12, 1300


@pytest.fixture
def layer() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, output matrix and bias in float64, and tokens of which about half are the most likely ones."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((ROWS, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,))
    )
    best = (hidden @ weight.T + bias).argmax(-1)
    others = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    return hidden, weight, bias, torch.where(torch.arange(ROWS) % 2 == 0, best, others)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_are_torchs(
    layer: tuple[Tensor, Tensor, Tensor, Tensor], softcap: float | None, with_bias: bool
) -> None:
    hidden, weight, bias, tokens = layer
    inputs = [hidden, weight, *([bias] if with_bias else [])]
    logits = hidden @ weight.T + (bias if with_bias else 0.0)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    want = torch.nn.functional.cross_entropy(logits, tokens)
    accuracy = (logits.argmax(-1) == tokens).double().mean()
    plain = troll.cross_entropy(logits, tokens)
    fused = troll.fused_cross_entropy(hidden, weight, tokens, bias=bias if with_bias else None, softcap=softcap)
    wanted = torch.autograd.grad(want, inputs, retain_graph=True)
    for got in (plain, fused):
        assert torch.allclose(got.loss, want, rtol=1e-12)
        assert torch.allclose(got.metrics["accuracy"], accuracy)
        for gradient, expected in zip(torch.autograd.grad(got.loss, inputs), wanted, strict=True):
            assert torch.allclose(gradient, expected, rtol=1e-9, atol=1e-12)


def test_parts_with_the_batchs_count_add_up(layer: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    hidden, weight, _, tokens = layer
    mask = torch.arange(ROWS) % 3 > 0
    whole = troll.fused_cross_entropy(hidden, weight, tokens, mask)
    number = int(mask.sum())
    parts = [
        troll.fused_cross_entropy(hidden[cut], weight, tokens[cut], mask[cut], normalizer=number)
        for cut in (slice(0, 7), slice(7, 8), slice(8, ROWS))
    ]
    total = torch.stack([part.loss for part in parts]).sum()
    assert torch.allclose(total, whole.loss, rtol=1e-12)
    for got, want in zip(
        torch.autograd.grad(total, [hidden, weight]), torch.autograd.grad(whole.loss, [hidden, weight]), strict=True
    ):
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-13)
    assert sum(part.metrics["tokens"].item() for part in parts) == number


def test_masked_rows_are_not_read(layer: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    hidden, weight, _, tokens = layer
    broken = hidden.detach().clone()
    broken[3], tokens[3] = torch.nan, -1
    mask = torch.arange(ROWS) != 3
    assert troll.fused_cross_entropy(broken, weight, tokens, mask).loss.isfinite()
    with pytest.raises(ValueError, match="row 3"):
        troll.fused_cross_entropy(broken, weight, tokens)


def test_a_normalizer_of_zero_is_refused(layer: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    hidden, weight, _, tokens = layer
    with pytest.raises(ValueError, match="normalizer"):
        troll.fused_cross_entropy(hidden, weight, tokens, normalizer=0)
