"""The loss and its gradient against the oracle, and the properties the objective promises."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import troll
from tests.troll import oracle
from tests.troll.cases import SHAPES, gradient_of, make_case, relative_error
from troll.aggregation import Aggregation
from troll.objectives.base import Ratio
from troll.rows import SparseLogProbs, Tail

LIMITS = {torch.float64: 1e-8, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("vocabulary", "sharp", "moved", "cap"), SHAPES)
def test_loss_and_gradient_equal_the_oracle(
    vocabulary: int, sharp: float, moved: float, cap: int, dtype: torch.dtype
) -> None:
    case = make_case(24, vocabulary, sharp, moved, dtype=dtype)
    new, old_logits, tokens, advantages = case.tensors(dtype)
    old = troll.sparsify(old_logits, tokens, max_tokens=cap)
    out = troll.Troll(max_tokens=cap).loss(new, old, tokens, advantages)
    out.loss.backward()
    loss, gradient = oracle.batch(case.new, case.old, case.tokens, case.advantages, max_tokens=cap)
    assert out.loss.item() == pytest.approx(loss, rel=10 * LIMITS[dtype])
    assert relative_error(gradient_of(new), gradient) <= LIMITS[dtype]


@pytest.mark.parametrize(
    "options", [{}, {"max_tokens": 5}, {"tail": "mass", "max_tokens": 6}, {"alpha": 0.3}, {"pessimistic": True}]
)
def test_the_oracles_closed_form_equals_differences(options: dict[str, Any]) -> None:
    case = make_case(6, 12, 1.5, 1.5)
    for new, old, token, advantage in zip(case.new, case.old, case.tokens, case.advantages, strict=True):
        exact = oracle.gradient(new, old, int(token), float(advantage), **options)
        numeric = oracle.differences(new, old, int(token), float(advantage), **options)
        np.testing.assert_allclose(exact, numeric, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {"kl_bound": 0.01},
        {"kl_bound": 0.25, "alpha": 0.0},
        {"alpha": 3.0},
        {"dropped_mass": 0.1},
        {"default_prob": 1e-7},
        {"tail": "mass", "max_tokens": 6},
        {"pessimistic": True},
        {"pessimistic": True, "kl_bound": 0.01, "max_tokens": 5},
    ],
)
def test_options_equal_the_oracle(options: dict[str, Any]) -> None:
    case = make_case(24, 40, 2.0, 1.0)
    new, old_logits, tokens, advantages = case.tensors()
    sparsity = {key: value for key, value in options.items() if key not in ("kl_bound", "alpha", "pessimistic")}
    old = troll.sparsify(old_logits, tokens, **sparsity)
    troll.Troll(**options).loss(new, old, tokens, advantages).loss.backward()
    renamed = {"bound" if key == "kl_bound" else key: value for key, value in options.items()}
    _, gradient = oracle.batch(case.new, case.old, case.tokens, case.advantages, **renamed)
    assert relative_error(gradient_of(new), gradient) <= 1e-8


def test_a_policy_that_moved_against_the_advantage_is_not_held_back() -> None:
    """From 0.5 the token's probability went to 0.05: where its advantage is positive, the way back is free."""
    old_logits = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    new = torch.tensor([[0.05, 0.95]], dtype=torch.float64).log().requires_grad_()
    tokens, old = torch.tensor([0]), troll.sparsify(old_logits, torch.tensor([0]))
    free = {}
    for advantage in (1.0, -1.0):
        objective = troll.Troll(pessimistic=True, alpha=0.0)
        loss = objective.loss(new, old, tokens, torch.tensor([advantage], dtype=torch.float64)).loss
        (free[advantage],) = torch.autograd.grad(loss, new)
    # The policy's own ratio is 0.1, and d log p(a) / d z(a) is 0.95.
    assert float(free[1.0][0, 0]) == pytest.approx(-0.1 * 0.95, rel=1e-6)
    assert abs(float(free[-1.0][0, 0])) < 1e-6


def test_of_a_ratio_beyond_ten_the_pessimistic_loss_takes_the_projected_one() -> None:
    old_logits, new = torch.tensor([[-30.0, 0.0]]), torch.tensor([[0.0, -30.0]])
    old, tokens, advantages = troll.sparsify(old_logits, torch.tensor([0])), torch.tensor([0]), torch.tensor([-1.0])
    pessimistic, plain = (
        troll.Troll(pessimistic=asked).loss(new, old, tokens, advantages).loss for asked in (True, False)
    )
    assert pessimistic == plain


def test_temperature_divides_the_logits() -> None:
    case = make_case(10, 30, 2.0, 1.0)
    new, old_logits, tokens, advantages = case.tensors()
    warm = troll.Troll(temperature=0.6).loss(
        new, troll.sparsify(old_logits, tokens, temperature=0.6), tokens, advantages
    )
    plain = troll.Troll().loss(new / 0.6, troll.sparsify(old_logits / 0.6, tokens), tokens, advantages)
    assert torch.allclose(warm.loss, plain.loss)
    assert torch.allclose(torch.autograd.grad(warm.loss, new)[0], torch.autograd.grad(plain.loss, new)[0])


def test_gradcheck() -> None:
    """With no regression term nothing is detached, and finite differences see the whole derivative."""
    case = make_case(5, 9, 1.0, 1.0)
    new, old_logits, tokens, advantages = case.tensors()
    old = troll.sparsify(old_logits, tokens, dropped_mass=0.0)
    torch.autograd.gradcheck(
        lambda z: troll.Troll(alpha=0.0, dropped_mass=0.0).loss(z, old, tokens, advantages).loss, new
    )


def test_the_old_support_is_the_old_policys() -> None:
    """Dense reference: the new policy cut down to the old one's support."""
    case = make_case(12, 30, 1.5, 1.0)
    new, old_logits, tokens, advantages = case.tensors()
    old = troll.sparsify(old_logits, tokens, max_tokens=6)
    out = troll.Troll(support="old").loss(new, old, tokens, advantages)
    losses = []
    for i in range(12):
        kept = sorted(old.ids[i][old.ids[i] >= 0].tolist())
        value, _ = oracle.row(
            case.new[i], case.old[i], int(case.tokens[i]), float(case.advantages[i]), max_tokens=6, kept=kept
        )
        losses.append(value)
    assert out.loss.item() == pytest.approx(float(np.mean(losses)), rel=1e-9)


def test_an_unmoved_policy_has_ratio_one_and_no_pull() -> None:
    case = make_case(50, 100, 3.0, 0.0)
    new, old_logits, tokens, advantages = case.tensors(torch.float32)
    old = troll.sparsify(old_logits, tokens, max_tokens=8)
    out = troll.Troll(max_tokens=8).loss(new, old, tokens, advantages)
    assert out.metrics["ratio"].item() == 1.0
    assert out.metrics["ratio_max"].item() == 1.0
    assert out.metrics["kl_before_max"].item() == 0.0
    assert out.metrics["fraction_projected"].item() == 0.0
    assert out.metrics["regression_loss"].item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_regression_has_exactly_no_gradient_inside_the_region(dtype: torch.dtype) -> None:
    case = make_case(40, 60, 1.0, 0.05)
    new, old_logits, tokens, _ = case.tensors(dtype)
    old = troll.sparsify(old_logits, tokens, max_tokens=64, dropped_mass=0.0)
    out = troll.Troll(dropped_mass=0.0, alpha=5.0).loss(new, old, tokens, torch.zeros(40, dtype=dtype))
    out.loss.backward()
    assert out.metrics["kl_before_max"].item() > 0
    assert out.metrics["fraction_projected"].item() == 0
    assert out.loss.item() == 0
    assert torch.count_nonzero(gradient_of(new)) == 0


def test_the_pull_leads_back_into_the_region() -> None:
    case = make_case(30, 25, 1.0, 1.5)
    new, old_logits, tokens, _ = case.tensors()
    old = troll.sparsify(old_logits, tokens)
    nothing = torch.zeros(30, dtype=torch.float64)
    optimiser = torch.optim.Adam([new], lr=0.03)
    before = troll.Troll().loss(new, old, tokens, nothing).metrics
    for _ in range(150):
        optimiser.zero_grad()
        troll.Troll().loss(new, old, tokens, nothing).loss.backward()
        optimiser.step()
    after = troll.Troll().loss(new, old, tokens, nothing).metrics
    assert before["kl_before"] > 0.3
    assert after["kl_before"] < 0.055


def naive_bfloat16(new: Tensor, old: SparseLogProbs, tokens: Tensor, advantages: Tensor, cap: int) -> Tensor:
    """The gradient with respect to the logits where log-softmax and its backward are left to bfloat16."""
    log_probs = new.log_softmax(-1)
    return torch.autograd.grad(troll.Troll(max_tokens=cap).loss(log_probs, old, tokens, advantages).loss, new)[0]


@pytest.mark.parametrize(("vocabulary", "sharp", "moved", "cap"), SHAPES[:5])
def test_bfloat16_logits_lose_no_more_than_a_naive_implementation(
    vocabulary: int, sharp: float, moved: float, cap: int
) -> None:
    case = make_case(24, vocabulary, sharp, moved, dtype=torch.bfloat16)
    new, old_logits, tokens, advantages = case.tensors(torch.bfloat16)
    old = troll.sparsify(old_logits, tokens, max_tokens=cap)
    got = torch.autograd.grad(troll.Troll(max_tokens=cap).loss(new, old, tokens, advantages).loss, new)[0]
    _, want = oracle.batch(case.new, case.old, case.tokens, case.advantages, max_tokens=cap)
    naive = relative_error(naive_bfloat16(new, old, tokens, advantages, cap).double(), want)
    # Half a unit in the last place of bfloat16 is what writing the gradient down costs at least.
    assert relative_error(got.double(), want) <= max(naive, 2**-9)


def test_ragged_batches_equal_their_packed_tokens() -> None:
    case = make_case(12, 30, 2.0, 1.0)
    new, old_logits, tokens, advantages = case.tensors()
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 1]])
    chosen = mask.reshape(-1).nonzero().squeeze(-1)
    sequence_ids = torch.arange(3).repeat_interleave(4)[chosen]
    old = troll.sparsify(old_logits, tokens)
    for ratio in ("token", "sequence"):
        for mode in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"):
            objective = troll.Troll(ratio=ratio, aggregation=mode)
            padded = objective.loss(
                new.view(3, 4, 30),
                old.reshape(3, 4),
                tokens.view(3, 4),
                advantages.view(3, 4),
                mask,
                normalizer=7.0,
            )
            packed = objective.loss(
                new[chosen],
                old[chosen],
                tokens[chosen],
                advantages[chosen],
                sequence_ids=sequence_ids,
                normalizer=7.0,
            )
            assert torch.allclose(padded.loss, packed.loss), (ratio, mode)
            of_padded, of_packed = (torch.autograd.grad(out.loss, new)[0] for out in (padded, packed))
            assert torch.allclose(of_padded, of_packed), (ratio, mode)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize(
    ("mode", "count"),
    [
        ("token-mean", 9),
        ("seq-mean-token-mean", 4),
        ("seq-mean-token-sum", 4),
        ("seq-mean-token-sum-norm", 12),
    ],
)
def test_parts_of_a_batch_add_up_to_the_whole(mode: Aggregation, count: int, ratio: Ratio) -> None:
    case = make_case(12, 20, 2.0, 1.0)
    new, old_logits, tokens, advantages = case.tensors()
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    old = troll.sparsify(old_logits, tokens).reshape(4, 3)
    tokens, advantages = tokens.view(4, 3), advantages.view(4, 3)[:, 0]
    objective = troll.Troll(ratio=ratio, aggregation=mode)
    whole = objective.loss(new.view(4, 3, 20), old, tokens, advantages, mask)
    parts = [
        objective.loss(
            new.view(4, 3, 20)[part], old[part], tokens[part], advantages[part], mask[part], normalizer=count
        )
        for part in (slice(0, 1), slice(1, 4))
    ]
    total = parts[0].loss + parts[1].loss
    assert torch.allclose(whole.loss, total)
    assert torch.allclose(torch.autograd.grad(whole.loss, new)[0], torch.autograd.grad(total, new)[0])


def test_the_sequence_ratio_has_the_sequences_value_and_the_tokens_gradient() -> None:
    case = make_case(6, 15, 1.0, 1.0)
    new, old_logits, tokens, advantages = case.tensors()
    old = troll.sparsify(old_logits, tokens)
    out = troll.Troll(ratio="sequence").loss(
        new.view(2, 3, 15), old.reshape(2, 3), tokens.view(2, 3), advantages.view(2, 3)
    )
    out.loss.backward()
    log_ratio, expected = np.zeros(6), np.zeros((6, 15))
    for i in range(6):
        q, p = (
            oracle.sparse_row(
                oracle.log_softmax(z[i]),
                oracle.support(oracle.log_softmax(z[i]), int(case.tokens[i]), 64, 1e-5),
                1e-12,
            )
            for z in (case.old, case.new)
        )
        log_ratio[i] = oracle.project(q, p, 0.05)[0][case.tokens[i]] - q[case.tokens[i]]
    weight = np.exp(log_ratio.reshape(2, 3).mean(1)).repeat(3)
    for i in range(6):
        expected[i] = oracle.gradient(
            case.new[i], case.old[i], int(case.tokens[i]), float(case.advantages[i]), weight=float(weight[i])
        )
    assert out.metrics["ratio"].item() == pytest.approx(weight.mean(), rel=1e-9)
    assert relative_error(gradient_of(new), expected / 6) <= 1e-8


@pytest.mark.parametrize("advantage_shape", [(2,), (2, 1), (2, 3)])
def test_advantages_spread_over_the_tokens_of_a_sequence(advantage_shape: tuple[int, ...]) -> None:
    case = make_case(6, 15, 1.0, 1.0)
    new, old_logits, tokens, _ = case.tensors()
    old = troll.sparsify(old_logits, tokens)
    per_sequence = torch.tensor([0.5, -2.0], dtype=torch.float64)
    advantages = (
        per_sequence.view(2, 1).expand(2, 3) if advantage_shape == (2, 3) else per_sequence.view(advantage_shape)
    )
    got = troll.Troll().loss(new.view(2, 3, 15), old.reshape(2, 3), tokens.view(2, 3), advantages)
    want = troll.Troll().loss(new, old, tokens, per_sequence.repeat_interleave(3))
    assert torch.equal(got.loss, want.loss)


def test_an_empty_mask_is_a_loss_of_zero() -> None:
    case = make_case(4, 10, 1.0, 1.0)
    new, old_logits, tokens, advantages = case.tensors()
    old = troll.sparsify(old_logits, tokens)
    out = troll.Troll().loss(new, old, tokens, advantages, torch.zeros(4))
    out.loss.backward()
    assert out.loss.item() == 0
    assert torch.count_nonzero(gradient_of(new)) == 0
    assert all(torch.isfinite(value) for value in out.metrics.values())
    assert out.metrics["tokens"].item() == 0


def test_masked_rows_are_not_read() -> None:
    case = make_case(4, 10, 1.0, 1.0)
    new, old_logits, tokens, advantages = case.tensors()
    mask = torch.tensor([1, 0, 1, 1])
    old = troll.sparsify(old_logits, tokens)
    want = torch.autograd.grad(troll.Troll().loss(new, old, tokens, advantages, mask).loss, new)[0]
    with torch.no_grad():
        new[1], advantages[1], tokens[1] = torch.nan, torch.inf, -100
    got = torch.autograd.grad(troll.Troll().loss(new, old, tokens, advantages, mask).loss, new)[0]
    assert torch.equal(got, want)


def test_logits_of_minus_infinity() -> None:
    logits = torch.tensor([[2.0, 1.0, -torch.inf, 0.0], [1.0, -torch.inf, 0.0, 3.0]])
    old = troll.sparsify(torch.tensor([[2.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]), torch.tensor([0, 1]))
    # The new policy forbids token 2 of the first row, and the very token that was sampled in the second.
    new = logits.clone().requires_grad_()
    out = troll.Troll().loss(new, old, torch.tensor([0, 1]), torch.tensor([1.0, 1.0]))
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert torch.isfinite(gradient_of(new)).all()
    assert out.metrics["kl_after_max"] <= 0.05 + 1e-6


def test_a_one_hot_old_policy() -> None:
    old = troll.sparsify(torch.tensor([[200.0, 0, 0, 0]]), torch.tensor([0]))
    new = torch.tensor([[0.0, 1.0, 0, 0]], requires_grad=True)
    out = troll.Troll().loss(new, old, torch.tensor([0]), torch.tensor([1.0]))
    out.loss.backward()
    assert out.metrics["kl_after_max"] <= 0.05 + 1e-6
    assert torch.isfinite(gradient_of(new)).all()


def test_a_vocabulary_and_a_support_of_one() -> None:
    old = troll.sparsify(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), max_tokens=1)
    new = torch.ones(3, 1, requires_grad=True)
    out = troll.Troll(max_tokens=1).loss(new, old, torch.zeros(3, dtype=torch.long), torch.ones(3))
    out.loss.backward()
    assert out.loss.item() == -1
    assert torch.count_nonzero(gradient_of(new)) == 0


def test_old_rows_may_keep_another_number_of_slots() -> None:
    case = make_case(10, 40, 1.0, 0.5)
    new, old_logits, tokens, advantages = case.tensors()
    narrow = troll.sparsify(old_logits, tokens, max_tokens=5)
    assert torch.equal(
        troll.Troll(max_tokens=9).loss(new, narrow, tokens, advantages).loss,
        troll.Troll(max_tokens=9).loss(new, narrow.pad_slots(30), tokens, advantages).loss,
    )


def test_reference_penalty_is_added() -> None:
    case = make_case(10, 40, 1.0, 0.5)
    new, old_logits, tokens, advantages = case.tensors()
    old = troll.sparsify(old_logits, tokens)
    reference = troll.Reference(torch.full((10,), -2.0, dtype=torch.float64), 0.1, "k2")
    plain = troll.Troll().loss(new, old, tokens, advantages)
    held = troll.Troll().loss(new, old, tokens, advantages, reference=reference)
    log_probs = new.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    penalty = 0.1 * (0.5 * (log_probs + 2.0) ** 2).mean()
    assert torch.allclose(held.loss, plain.loss + penalty)
    assert torch.allclose(
        torch.autograd.grad(held.loss, new)[0], torch.autograd.grad(plain.loss + penalty, new)[0], atol=1e-12
    )
    assert held.metrics["reference_loss"].item() == pytest.approx(penalty.item())


@pytest.mark.parametrize("tail", ["constant", "mass"])
def test_the_entropy_bonus_is_that_of_the_sparse_rows(tail: Tail) -> None:
    case = make_case(10, 40, 1.0, 0.5)
    new, old_logits, tokens, advantages = case.tensors()
    options: dict[str, Any] = {"max_tokens": 5, "tail": tail}
    old = troll.sparsify(old_logits, tokens, **options)
    plain = troll.Troll(**options).loss(new, old, tokens, advantages)
    held = troll.Troll(entropy_coefficient=0.2, **options).loss(new, old, tokens, advantages)
    dense = troll.sparsify(new, tokens, **options).dense()
    bonus = 0.2 * -(dense.exp() * dense).sum(-1).mean()
    assert torch.allclose(held.loss, plain.loss - bonus)
    assert held.metrics["entropy_bonus"].item() == pytest.approx(bonus.item())
    optimiser = torch.optim.Adam([new], lr=0.05)
    for _ in range(20):
        optimiser.zero_grad()
        troll.Troll(alpha=0.0, entropy_coefficient=1.0, **options).loss(
            new, old, tokens, torch.zeros_like(advantages)
        ).loss.backward()
        optimiser.step()
    after = troll.Troll(entropy_coefficient=0.2, **options).loss(new, old, tokens, advantages)
    assert after.metrics["entropy_bonus"] > bonus


def test_metrics_are_detached_scalars() -> None:
    case = make_case(30, 40, 2.0, 0.35)
    new, old_logits, tokens, advantages = case.tensors()
    out = troll.Troll().loss(new, troll.sparsify(old_logits, tokens), tokens, advantages)
    assert all(value.dim() == 0 and not value.requires_grad for value in out.metrics.values())
    metrics = {name: value.item() for name, value in out.metrics.items()}
    assert out.loss.item() == pytest.approx(metrics["policy_loss"] + metrics["regression_loss"])
    entropy = torch.distributions.Categorical(logits=new.detach()).entropy().mean()
    assert metrics["entropy"] == pytest.approx(entropy.item())
    assert metrics["tokens"] == 30
    assert 0 < metrics["fraction_projected"] < 1
    assert 0 < metrics["beta"] < 1
    assert metrics["kl_after_max"] == pytest.approx(0.05)
    assert metrics["kept_mass"] == pytest.approx(1, abs=1e-5)


LOGITS, TOKENS, ADVANTAGES = torch.randn(2, 3, 10), torch.zeros(2, 3, dtype=torch.long), torch.ones(2)
OLD = troll.sparsify(LOGITS, TOKENS)
OTHER: Any = "other"
BROKEN_OLD = dataclasses.replace(OLD, log_probs=OLD.log_probs.clone())
BROKEN_OLD.log_probs[1, 1, 0] = torch.nan
BROKEN = LOGITS.clone()
BROKEN[1, 0, 3] = torch.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: troll.Troll().loss(LOGITS.long(), OLD, TOKENS, ADVANTAGES), "logits: needs a floating point dtype"),
        (lambda: troll.Troll().loss(LOGITS[:1], OLD, TOKENS, ADVANTAGES), "tokens: shape"),
        (lambda: troll.Troll().loss(LOGITS, OLD, TOKENS.bool(), ADVANTAGES), "tokens: needs an integer dtype"),
        (lambda: troll.Troll().loss(LOGITS, OLD, TOKENS + 10, ADVANTAGES), "tokens: row 0 holds 10"),
        (lambda: troll.Troll().loss(LOGITS, OLD, TOKENS + 1, ADVANTAGES), "old: row 0 was made for token 0"),
        (lambda: troll.Troll().loss(LOGITS, OLD[:1], TOKENS, ADVANTAGES), r"old: shape \[1, 3\]"),
        (lambda: troll.Troll().loss(LOGITS[..., :9], OLD, TOKENS, ADVANTAGES), "old: vocabulary of 10 does not match"),
        (lambda: troll.Troll().loss(LOGITS, OLD, TOKENS, torch.ones(3)), r"advantages: shape \[3\]"),
        (lambda: troll.Troll().loss(LOGITS, OLD, TOKENS, ADVANTAGES.int()), "advantages: needs a floating"),
        (lambda: troll.Troll().loss(LOGITS, OLD, TOKENS, ADVANTAGES * torch.nan), "advantages: row 0 holds NaN"),
        (lambda: troll.Troll().loss(LOGITS, OLD, TOKENS, ADVANTAGES, torch.ones(2)), "mask: shape"),
        (lambda: troll.Troll().loss(LOGITS, BROKEN_OLD, TOKENS, ADVANTAGES), "old: row 4 holds NaN"),
        (lambda: troll.Troll().loss(BROKEN, OLD, TOKENS, ADVANTAGES), "logits: row 3 holds NaN"),
        (lambda: troll.Troll(kl_bound=0.0).loss(LOGITS, OLD, TOKENS, ADVANTAGES), "kl_bound: needs a positive"),
        (lambda: troll.Troll(alpha=-1.0).loss(LOGITS, OLD, TOKENS, ADVANTAGES), "alpha: needs a number of at least 0"),
        (
            lambda: troll.Troll(ratio=OTHER).loss(LOGITS, OLD, TOKENS, ADVANTAGES),
            "ratio: 'other' is not one of",
        ),
        (
            lambda: troll.Troll(aggregation=OTHER).loss(LOGITS, OLD, TOKENS, ADVANTAGES),
            "aggregation: 'other' is not",
        ),
        (
            lambda: troll.Troll(support=OTHER).loss(LOGITS, OLD, TOKENS, ADVANTAGES),
            "support: 'other' is not one of",
        ),
        (lambda: troll.Troll().loss(LOGITS, OLD, TOKENS, ADVANTAGES, normalizer=0), "normalizer: needs a positive"),
        (
            lambda: troll.Troll(ratio="sequence").loss(LOGITS[0], OLD[0], TOKENS[0], torch.ones(3)),
            "sequence_ids: ratio='sequence' needs sequences",
        ),
        (
            lambda: troll.Troll(aggregation="seq-mean-token-sum").loss(LOGITS[0], OLD[0], TOKENS[0], torch.ones(3)),
            "sequence_ids: aggregation='seq-mean-token-sum' needs sequences",
        ),
    ],
)
def test_errors_name_the_argument_and_the_row(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
