"""TROLL with the sequence's ratio against its formula, one token at a time in float64.

For a sequence of tokens t with projected policies pi_t, the log-ratio is `l_t = log pi_t(a_t) - log q_t(a_t)` and the
weight of a token `exp(min(mean_t l_t, 10)) exp(l_t - l_t)`, where the mean and the last `l_t` are held still: the value
is the sequence's geometric mean, the gradient the token's own.
"""

import math
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import troll
from tests.troll import oracle
from tests.troll.cases import SHAPES, Case, gradient_of, make_case, relative_error
from tests.troll.oracle import Array
from troll.aggregation import Aggregation
from troll.gradient import Backward

MODES: tuple[Aggregation, ...] = get_args(Aggregation)
SPARSITY = ("max_tokens", "dropped_mass", "default_prob", "tail")
LENGTHS = [[1], [5], [3, 1, 5], [1, 1, 1, 1], [2, 7, 2]]
STEP = 1e-5


@dataclass(frozen=True)
class Still:
    """What of one token is held still when the loss is differentiated."""

    kept: list[int]
    target: Array
    log_ratio: float
    of_sequence: float


def token(
    new: Array, case: Case, i: int, still: Still | None, bound: float, alpha: float, sparsity: dict[str, Any]
) -> tuple[float, float, Array, list[int]]:
    """Log-ratio, regression, projected row and support of token `i` whose new logits are `new`."""
    log_p, log_q, a = oracle.log_softmax(new), oracle.log_softmax(case.old[i]), int(case.tokens[i])
    most, dropped = int(sparsity.get("max_tokens", 64)), float(sparsity.get("dropped_mass", 1e-5))
    rest = (float(sparsity.get("default_prob", 1e-12)), str(sparsity.get("tail", "constant")))
    kept = still.kept if still else oracle.support(log_p, a, most, dropped)
    p = oracle.sparse_row(log_p, kept, *rest)
    q = oracle.sparse_row(log_q, oracle.support(log_q, a, most, dropped), *rest)
    pi, eta = oracle.project(q, p, bound)
    regression = alpha * oracle.kl(p, still.target if still else pi) if eta else 0.0
    return float(pi[a] - q[a]), regression, pi, kept


def shares(lengths: list[int], mode: Aggregation) -> list[float]:
    """What each token's loss counts in the whole, one sequence after the other."""
    longest, number = max(lengths), len(lengths)
    each = {
        "token-mean": [1 / sum(lengths) for _ in lengths],
        "seq-mean-token-mean": [1 / (n * number) for n in lengths],
        "seq-mean-token-sum": [1 / number for _ in lengths],
        "seq-mean-token-sum-norm": [1 / (number * longest) for _ in lengths],
    }[mode]
    return [share for n, share in zip(lengths, each, strict=True) for _ in range(n)]


def expected(
    case: Case, lengths: list[int], mode: Aggregation, bound: float = 0.05, alpha: float = 1.0, **sparsity: Any
) -> tuple[float, Array, list[Still]]:
    """Loss, its gradient `[N, V]` by the chain rule, and what was held still."""
    rows = [token(case.new[i], case, i, None, bound, alpha, sparsity) for i in range(len(case.new))]
    loss, gradients, still, share = 0.0, [], [], shares(lengths, mode)
    i = 0
    for length in lengths:
        mean = sum(rows[j][0] for j in range(i, i + length)) / length
        weight = math.exp(min(mean, 10.0))
        for j in range(i, i + length):
            log_ratio, regression, pi, kept = rows[j]
            a, advantage = int(case.tokens[j]), float(case.advantages[j])
            loss += share[j] * (-advantage * weight + regression)
            of_token = oracle.gradient(
                case.new[j], case.old[j], a, advantage, bound=bound, alpha=alpha, weight=weight, **sparsity
            )
            gradients.append(share[j] * of_token)
            still.append(Still(kept, pi, log_ratio, weight))
        i += length
    return loss, np.stack(gradients), still


def by_differences(
    case: Case,
    lengths: list[int],
    mode: Aggregation,
    still: list[Still],
    bound: float = 0.05,
    alpha: float = 1.0,
    **sparsity: Any,
) -> Array:
    """The same gradient by central differences of the formula, what is held still held still."""
    result, share = np.zeros_like(case.new), shares(lengths, mode)
    for i, held in enumerate(still):
        for j in range(case.new.shape[1]):
            ends = []
            for step in (STEP, -STEP):
                nudged = case.new[i].copy()
                nudged[j] += step
                log_ratio, regression, _, _ = token(nudged, case, i, held, bound, alpha, sparsity)
                weight = held.of_sequence * math.exp(log_ratio - held.log_ratio)
                ends.append(share[i] * (-float(case.advantages[i]) * weight + regression))
            result[i, j] = (ends[0] - ends[1]) / (2 * STEP)
    return result


def padded(values: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Packed tokens `[N, …]` as `[B, T, …]`, filled up with what is not to be read."""
    fill = math.nan if values.is_floating_point() else 0
    whole = values.new_full((len(lengths), max(lengths), *values.shape[1:]), fill)
    for row, part in enumerate(values.split(lengths)):
        whole[row, : len(part)] = part
    return whole


OPTIONS: list[dict[str, Any]] = [
    {},
    {"bound": 0.01},
    {"bound": 0.3, "alpha": 0.0},
    {"alpha": 3.0},
    {"dropped_mass": 0.1, "default_prob": 1e-7},
    {"tail": "mass", "max_tokens": 6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_chain_rule_equals_differences(options: dict[str, Any]) -> None:
    case, lengths, mode = make_case(6, 9, 1.5, 1.5), [3, 1, 2], MODES[1]
    _, exact, still = expected(case, lengths, mode, **options)
    numeric = by_differences(case, lengths, mode, still, **options)
    np.testing.assert_allclose(exact, numeric, rtol=1e-4, atol=1e-7)


def objective(mode: Aggregation, options: dict[str, Any], **more: Any) -> troll.Troll:
    renamed = {"kl_bound" if key == "bound" else key: value for key, value in options.items()}
    return troll.Troll(ratio="sequence", aggregation=mode, **renamed, **more)


def compare(case: Case, lengths: list[int], mode: Aggregation, options: dict[str, Any], dtype: torch.dtype) -> None:
    new, old_logits, tokens, advantages = case.tensors(dtype)
    made = objective(mode, options)
    old = troll.sparsify(old_logits, tokens, **made.sparsity)
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    normalizer = len(lengths) * max(lengths) if mode == "seq-mean-token-sum-norm" else None
    out = made.loss(new, old, tokens, advantages, sequence_ids=ids, normalizer=normalizer)
    out.loss.backward()
    loss, gradient, _ = expected(case, lengths, mode, **options)
    limit = 1e-8 if dtype == torch.float64 else 1e-4
    # Policy and regression terms may cancel: what they are made of bounds the error.
    assert out.loss.item() == pytest.approx(loss, rel=10 * limit, abs=limit)
    # A gradient may all but vanish, as where no token but the sampled one is kept; that much rounds then.
    scale = float(np.linalg.norm(gradient)) + float(np.abs(case.advantages).mean()) / len(gradient)
    assert float(np.linalg.norm(gradient_of(new).double().numpy() - gradient)) <= limit * scale


@pytest.mark.parametrize(
    ("lengths", "dtype"), [*((each, torch.float64) for each in LENGTHS), ([3, 1, 5], torch.float32)], ids=str
)
@pytest.mark.parametrize(("vocabulary", "sharp", "moved", "cap"), SHAPES)
def test_loss_and_gradient_equal_the_formula(
    vocabulary: int, sharp: float, moved: float, cap: int, lengths: list[int], dtype: torch.dtype
) -> None:
    case = make_case(sum(lengths), vocabulary, sharp, moved, seed=len(lengths), dtype=dtype)
    compare(case, lengths, "token-mean", {"max_tokens": cap}, dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_and_aggregations_equal_the_formula(options: dict[str, Any], mode: Aggregation) -> None:
    compare(make_case(9, 30, 2.0, 1.0), [3, 1, 5], mode, options, torch.float64)


@pytest.mark.parametrize("mode", MODES)
def test_padded_sequences_equal_the_formula(mode: Aggregation) -> None:
    case, lengths = make_case(9, 30, 2.0, 1.0), [3, 1, 5]
    new, old_logits, tokens, advantages = case.tensors()
    made = objective(mode, {})
    leaf = padded(new.detach(), lengths).requires_grad_()
    mask = padded(torch.ones_like(tokens), lengths)
    rows = troll.sparsify(padded(old_logits, lengths).nan_to_num(), padded(tokens, lengths), **made.sparsity)
    out = made.loss(leaf, rows, padded(tokens, lengths), padded(advantages, lengths), mask)
    out.loss.backward()
    loss, gradient, _ = expected(case, lengths, mode)
    assert out.loss.item() == pytest.approx(loss, rel=1e-8)
    assert relative_error(gradient_of(leaf)[mask.bool()], gradient) <= 1e-8
    assert not gradient_of(leaf)[~mask.bool()].any()


@pytest.mark.parametrize("backward", ["auto", "dense"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("lengths", "hidden_size", "vocabulary", "cap"),
    [([1], 4, 7, 3), ([5], 8, 30, 64), ([3, 1, 5], 6, 200, 16), ([2, 7, 2], 16, 60, 60)],
    ids=str,
)
def test_the_fused_form_equals_the_formula(
    lengths: list[int], hidden_size: int, vocabulary: int, cap: int, mode: Aggregation, backward: Backward
) -> None:
    rng = np.random.default_rng(vocabulary)
    n = sum(lengths)
    old_hidden, weight = rng.normal(size=(n, hidden_size)), rng.normal(size=(vocabulary, hidden_size))
    new_hidden = old_hidden + 0.5 * rng.normal(size=(n, hidden_size))
    old = old_hidden @ weight.T
    sampled: NDArray[np.int64] = (old + rng.gumbel(size=old.shape)).argmax(-1)
    case = Case(new_hidden @ weight.T, old, sampled, rng.normal(size=n))
    hidden, matrix = (torch.tensor(each, requires_grad=True) for each in (new_hidden, weight))
    _, old_logits, tokens, advantages = case.tensors()
    made = objective(mode, {"max_tokens": cap}, backward=backward)
    rows = troll.sparsify(old_logits, tokens, **made.sparsity)
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    normalizer = len(lengths) * max(lengths) if mode == "seq-mean-token-sum-norm" else None
    out = made.fused_loss(hidden, matrix, rows, tokens, advantages, sequence_ids=ids, normalizer=normalizer)
    out.loss.backward()
    loss, gradient, _ = expected(case, lengths, mode, max_tokens=cap)
    assert out.loss.item() == pytest.approx(loss, rel=1e-8)
    assert relative_error(gradient_of(hidden), gradient @ weight) <= 1e-8
    assert relative_error(gradient_of(matrix), gradient.T @ new_hidden) <= 1e-8


def test_a_sequence_weighs_no_more_than_e_to_the_tenth() -> None:
    """A token that was all but impossible and is certain now, in a region that lets it be."""
    old, new = np.zeros((2, 4)), np.zeros((2, 4))
    old[:, 0], new[:, 0] = -18.0, 18.0
    case = Case(new, old, np.zeros(2, dtype=np.int64), np.array([1.0, -2.0]))
    options = {"bound": 100.0, "dropped_mass": 0.0}
    compare(case, [1, 1], "token-mean", options, torch.float64)
    loss, _, still = expected(case, [1, 1], "token-mean", **options)
    assert all(each.log_ratio > 15 for each in still)
    assert loss == pytest.approx(math.exp(10) / 2)
