"""Clipping and DPPO: their formulas by hand, and their fused forms against the plain ones."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import troll
from tests.troll.cases import gradient_of, make_case
from troll.objectives import Cispo, Clip, Dppo, Gspo, Objective, Sapo
from troll.objectives.dppo import Divergence


def two_tokens(probability: float) -> Tensor:
    """Logits `[1, 2]` that give token 0 this probability."""
    return torch.tensor([[math.log(probability), math.log(1 - probability)]], dtype=torch.float64, requires_grad=True)


def run(objective: Objective[Any], new: float, old: float, advantage: float) -> tuple[float, float, float]:
    """Loss, gradient of the first logit and fraction clipped of one token."""
    logits = two_tokens(new)
    old_log_probs = torch.tensor([math.log(old)], dtype=torch.float64)
    out = objective.loss(logits, old_log_probs, torch.tensor([0]), torch.tensor([advantage], dtype=torch.float64))
    out.loss.backward()
    return out.loss.item(), gradient_of(logits)[0, 0].item(), out.metrics["fraction_clipped"].item()


def slope(ratio: float, new: float, advantage: float) -> float:
    """Gradient of `-r A` with respect to the token's logit."""
    return -advantage * ratio * (1 - new)


@pytest.mark.parametrize(
    ("new", "advantage", "expected", "cut"),
    [
        (0.55, 1.0, -1.1, False),
        (0.65, 1.0, -1.2, True),
        (0.35, 1.0, -0.7, False),
        (0.65, -1.0, 1.3, False),
        (0.35, -1.0, 0.8, True),
        (0.5, -1.0, 1.0, False),
    ],
)
def test_clipping(new: float, advantage: float, expected: float, cut: bool) -> None:
    loss, gradient, fraction = run(Clip(), new, 0.5, advantage)
    assert loss == pytest.approx(expected)
    assert gradient == pytest.approx(0.0 if cut else slope(new / 0.5, new, advantage))
    assert fraction == float(cut)


def test_clip_higher() -> None:
    assert run(Clip(clip_high=0.28), 0.65, 0.5, 1.0)[0] == pytest.approx(-1.28)


@pytest.mark.parametrize(("new", "expected", "cut"), [(0.9, 3.0, True), (0.2, 2.0, False)])
def test_dual_clip_bounds_the_loss_of_bad_tokens(new: float, expected: float, cut: bool) -> None:
    loss, gradient, fraction = run(Clip(dual_clip=3.0), new, 0.1, -1.0)
    assert loss == pytest.approx(expected)
    assert (gradient == 0) == cut
    assert fraction == float(cut)


@pytest.mark.parametrize(
    ("objective", "advantage", "gradient"),
    [
        (Clip(), 1.0, 0.0),
        (Clip(), -1.0, math.exp(80) / 2),
        (Clip(dual_clip=10.0), -1.0, 0.0),
        (Dppo(), 1.0, 0.0),
        (Dppo(), -1.0, math.exp(80) / 2),
        (Cispo(), 1.0, -5.0 / 2),
        (Sapo(), 1.0, 0.0),
        (Sapo(), -1.0, 0.0),
    ],
)
def test_a_token_that_the_old_policy_held_impossible_has_the_gradient_of_the_rule(
    objective: Objective[Any], advantage: float, gradient: float
) -> None:
    """Its ratio is e^200, which float32 has not, and counts as e^80: held back it has a gradient of exactly 0."""
    logits = two_tokens(0.5).detach().float().requires_grad_()
    out = objective.loss(logits, torch.tensor([-200.0]), torch.tensor([0]), torch.tensor([advantage]))
    out.loss.backward()
    assert out.loss.isfinite()
    assert all(value.isfinite() for value in out.metrics.values())
    assert gradient_of(logits)[0, 0].item() == pytest.approx(gradient)


def test_gspo_clips_whole_sequences() -> None:
    """Three tokens of one sequence, ratios 2, 1 and 1/2: the geometric mean is 1, and nothing is clipped."""
    new = torch.cat([two_tokens(p) for p in (0.8, 0.4, 0.2)]).detach().requires_grad_()
    old = torch.full((3,), 0.4, dtype=torch.float64).log()
    tokens, advantages = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, dtype=torch.float64)
    out = Clip(ratio="sequence", clip_low=3e-4, clip_high=4e-4).loss(
        new.view(1, 3, 2), old.view(1, 3), tokens, advantages
    )
    out.loss.backward()
    assert out.metrics["ratio"].item() == pytest.approx(1.0)
    assert out.metrics["fraction_clipped"].item() == 0
    expected = torch.tensor([-(1 - p) / 3 for p in (0.8, 0.4, 0.2)], dtype=torch.float64)
    assert torch.allclose(gradient_of(new)[:, 0], expected)


@pytest.mark.parametrize(
    ("divergence", "new", "advantage", "cut"),
    [
        ("tv", 0.75, 1.0, True),
        ("tv", 0.65, 1.0, False),
        ("tv", 0.75, -1.0, False),
        ("tv", 0.25, -1.0, True),
        ("kl", 0.75, 1.0, True),
        ("kl", 0.6, 1.0, False),
        ("kl", 0.25, 1.0, False),
        ("kl", 0.25, -1.0, True),
    ],
)
def test_dppo_masks_tokens_on_their_way_out(divergence: Divergence, new: float, advantage: float, cut: bool) -> None:
    threshold = {"tv": 0.2, "kl": 0.05}[divergence]
    loss, gradient, fraction = run(Dppo(divergence=divergence, threshold=threshold), new, 0.5, advantage)
    assert fraction == float(cut)
    assert loss == pytest.approx(0.0 if cut else -new / 0.5 * advantage)
    assert gradient == pytest.approx(0.0 if cut else slope(new / 0.5, new, advantage))


def test_dppo_threshold_is_the_divergence_itself() -> None:
    exact = 0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3)
    for threshold, cut in ((exact * 0.999, 1.0), (exact * 1.001, 0.0)):
        assert run(Dppo(divergence="kl", threshold=threshold), 0.7, 0.5, 1.0)[2] == cut


@pytest.mark.parametrize(
    ("new", "advantage", "weight", "cut"),
    [(0.55, 1.0, 1.1, False), (0.9, 1.0, 1.5, True), (0.9, -1.0, 1.5, True), (0.05, -2.0, 0.1, False)],
)
def test_cispo_bounds_the_weight_and_keeps_the_gradient(new: float, advantage: float, weight: float, cut: bool) -> None:
    loss, gradient, fraction = run(Cispo(clip_high=0.5), new, 0.5, advantage)
    assert loss == pytest.approx(-weight * advantage * math.log(new))
    assert gradient == pytest.approx(-weight * advantage * (1 - new))
    assert fraction == float(cut)


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("new", [0.5, 0.55, 0.9, 0.05])
def test_sapo_gates_softly(new: float, advantage: float) -> None:
    sharpness, ratio = (2.0 if advantage > 0 else 3.0), new / 0.5
    share = 1 / (1 + math.exp(-sharpness * (ratio - 1)))
    loss, gradient, _ = run(Sapo(temperature_pos=2.0, temperature_neg=3.0), new, 0.5, advantage)
    assert loss == pytest.approx(-4 / sharpness * share * advantage)
    assert gradient == pytest.approx(4 * share * (1 - share) * slope(ratio, new, advantage))


def test_gspo_is_clipping_by_the_sequences_ratio_and_nothing_else() -> None:
    case = make_case(20, 30, 1.0, 0.5)
    new, old_logits, tokens, advantages = case.tensors()
    old = old_logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    sequences = torch.arange(20) // 5
    losses = [
        objective.loss(new, old, tokens, advantages, sequence_ids=sequences).loss
        for objective in (Gspo(), Clip(ratio="sequence", clip_low=3e-4, clip_high=4e-4))
    ]
    assert torch.equal(*losses)
    with pytest.raises(ValueError, match="ratio: GSPO is the objective of the sequence's ratio"):
        Gspo(ratio="token")


def by_loops(name: str, new: list[float], old: list[float], lengths: list[int], scores: list[float]) -> float:
    """The papers' formulas in plain numbers: the mean over tokens of `[B]` sequences that follow one another."""
    total, start = 0.0, 0
    for length, advantage in zip(lengths, scores, strict=True):
        ratios = [
            math.exp(n - o) for n, o in zip(new[start : start + length], old[start : start + length], strict=True)
        ]
        of_sequence = math.prod(ratios) ** (1 / length)
        for place, own in enumerate(ratios):
            ratio = of_sequence if name == "gspo" else own
            if name in ("clip", "gspo"):
                low, high = (0.2, 0.2) if name == "clip" else (3e-4, 4e-4)
                total -= min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
            elif name == "cispo":
                total -= min(ratio, 5.0) * advantage * new[start + place]
            elif name == "sapo":
                t = 1.0 if advantage > 0 else 1.05
                total -= 4 / t / (1 + math.exp(-t * (ratio - 1))) * advantage
            else:
                p, q = math.exp(old[start + place]), math.exp(new[start + place])
                out = q > p if advantage > 0 else q < p
                total -= 0.0 if out and abs(q - p) > 0.2 else ratio * advantage
        start += length
    return total / sum(lengths)


@pytest.mark.parametrize("kind", [Clip, Gspo, Cispo, Sapo, Dppo])
def test_an_objective_is_its_papers_formula(kind: type[Objective[Any]]) -> None:
    generator = torch.Generator().manual_seed(3)
    lengths = [4, 1, 6, 3]
    new_logits = 2 * torch.randn(14, 9, generator=generator, dtype=torch.float64)
    old_logits = new_logits + torch.randn(14, 9, generator=generator, dtype=torch.float64)
    tokens = torch.randint(9, (14,), generator=generator)
    scores = torch.randn(4, generator=generator, dtype=torch.float64)
    new, old = (each.log_softmax(-1)[torch.arange(14), tokens] for each in (new_logits, old_logits))
    sequences = torch.arange(4).repeat_interleave(torch.tensor(lengths))
    out = kind().loss(new_logits.requires_grad_(), old, tokens, scores[sequences], sequence_ids=sequences)
    told = by_loops(kind.__name__.lower(), new.tolist(), old.tolist(), lengths, scores.tolist())
    assert out.loss.item() == pytest.approx(told, rel=1e-12)


AROUND: dict[str, Any] = {"temperature": 0.8, "aggregation": "seq-mean-token-mean", "entropy_coefficient": 0.1}
OBJECTIVES = {
    "clip": Clip(dual_clip=10.0, **AROUND),
    "clip-sequence": Clip(ratio="sequence", clip_low=0.01, clip_high=0.02, **AROUND),
    "gspo": Gspo(clip_low=0.01, clip_high=0.02, **AROUND),
    "cispo": Cispo(clip_high=0.3, **AROUND),
    "cispo-sequence": Cispo(clip_high=0.1, ratio="sequence", **AROUND),
    "sapo": Sapo(**AROUND),
    "sapo-sequence": Sapo(ratio="sequence", **AROUND),
    "dppo-tv": Dppo(**AROUND),
    "dppo-kl": Dppo(divergence="kl", threshold=0.05, **AROUND),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_fused_equals_plain(name: str, softcap: float | None) -> None:
    objective = OBJECTIVES[name]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1300, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(1300, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(1300, (4, 5), generator=generator)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 4)
    advantages = torch.randn(4, generator=generator, dtype=torch.float64)
    logits = hidden @ weight.T + bias
    logits = logits * 0.5 if softcap is None else softcap * torch.tanh(logits * 0.5 / softcap)
    noise = 0.5 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    old = (logits / 0.8).log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1).detach() + noise
    reference = troll.Reference(old + 0.1, 0.2)
    layer: dict[str, Any] = {"bias": bias, "logit_scale": 0.5, "softcap": softcap}
    want = objective.loss(logits, old, tokens, advantages, mask, reference=reference)
    got = objective.fused_loss(hidden, weight, old, tokens, advantages, mask, reference=reference, **layer)
    assert torch.allclose(got.loss, want.loss)
    for key, value in want.metrics.items():
        assert torch.allclose(got.metrics[key], value), key
    inputs = [hidden, weight, bias]
    for left, right in zip(torch.autograd.grad(got.loss, inputs), torch.autograd.grad(want.loss, inputs), strict=True):
        assert torch.allclose(left, right, atol=1e-12)


def test_the_entropy_bonus_is_that_of_the_whole_row() -> None:
    case = make_case(20, 30, 1.0, 0.5)
    new, old_logits, tokens, advantages = case.tensors()
    old = troll.sparsify(old_logits, tokens)
    with torch.no_grad():
        new[3, 5] = -torch.inf
    plain = Clip().loss(new, old, tokens, advantages)
    held = Clip(entropy_coefficient=0.3).loss(new, old, tokens, advantages)
    entropy = torch.special.entr(new.softmax(-1)).sum(-1).mean()
    assert torch.allclose(held.loss, plain.loss - 0.3 * entropy)
    got, want = (torch.autograd.grad(loss, new)[0] for loss in (held.loss, plain.loss - 0.3 * entropy))
    finite = want.isfinite()
    assert torch.allclose(got[finite], want[finite], atol=1e-12)
    assert got.isfinite().all()


def test_sparse_rows_serve_as_old_log_probs() -> None:
    case = make_case(20, 30, 1.0, 0.5)
    new, old_logits, tokens, advantages = case.tensors()
    old = troll.sparsify(old_logits, tokens, max_tokens=2)
    log_probs = old_logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    for objective in (Clip(), Dppo()):
        by_rows, by_log_probs = (objective.loss(new, each, tokens, advantages).loss for each in (old, log_probs))
        assert torch.allclose(by_rows, by_log_probs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_low": -0.1}, "clip_low: needs a number of at least 0"),
        ({"dual_clip": 1.0}, "dual_clip: needs a number above 1"),
        ({"dual_clip": math.nan}, "dual_clip: needs a number above 1"),
        ({"dual_clip": "3"}, "dual_clip: needs a number, got '3'"),
        ({"temperature": -1.0}, "temperature: needs a positive number"),
    ],
)
def test_errors_of_clipping(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Clip(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"divergence": "js"}, "divergence: 'js' is not one of"), ({"threshold": 0.0}, "threshold: needs a positive")],
)
def test_errors_of_dppo(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dppo(**options)


def test_old_log_probs_must_be_finite_and_match() -> None:
    logits, tokens, advantages = torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(2)
    with pytest.raises(ValueError, match="old: row 1 holds NaN or infinity"):
        Clip().loss(logits, torch.tensor([-1.0, torch.nan]), tokens, advantages)
    with pytest.raises(ValueError, match=r"old: shape \[3\]"):
        Clip().loss(logits, torch.zeros(3), tokens, advantages)


@pytest.mark.parametrize(("moved", "low", "high"), [(6e-4, 3e-4, 4e-4), (0.5, 0.2, 0.2)])
def test_gspo_averaged_over_answers_is_the_papers_sequence_form(moved: float, low: float, high: float) -> None:
    new, old_logits, tokens, _ = make_case(12, 20, 1.0, moved).tensors()
    advantages = torch.tensor([0.7, -1.0, 1.5, -0.2], dtype=torch.float64)
    old = old_logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].view(4, 3)
    made = Gspo(aggregation="seq-mean-token-mean", clip_low=low, clip_high=high)
    out = made.loss(new.view(4, 3, 20), old, tokens.view(4, 3), advantages)
    log_probs = new.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].view(4, 3)
    s = (log_probs - old).mean(-1).exp()
    expected = -torch.minimum(s * advantages, s.clamp(1 - low, 1 + high) * advantages).mean()
    assert out.loss.item() == pytest.approx(expected.item())
    got, want = (torch.autograd.grad(each, new)[0] for each in (out.loss, expected))
    assert 0 < out.metrics["fraction_clipped"].item() < 1
    torch.testing.assert_close(got, want)
