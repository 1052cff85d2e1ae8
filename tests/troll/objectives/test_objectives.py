"""What holds of every objective in the registry."""

from typing import Any, get_args

import pytest
import torch

import troll
from tests.troll.cases import make_case
from troll.aggregation import AGGREGATIONS, Aggregation
from troll.objectives import OBJECTIVES, Objective


@pytest.fixture(params=OBJECTIVES)
def kind(request: pytest.FixtureRequest) -> type[Objective[Any]]:
    return OBJECTIVES[request.param]


def output(objective: Objective[Any], **options: Any) -> troll.LossOutput:
    """The loss of 12 tokens in 3 sequences; the new policy has moved far from the old one."""
    new, old_logits, tokens, advantages = make_case(12, 30, 2.0, 1.0).tensors()
    old = troll.sparsify(old_logits, tokens, temperature=objective.temperature, **objective.sparsity)
    shaped = new.view(3, 4, 30), old.reshape(3, 4), tokens.view(3, 4), advantages.view(3, 4)
    return objective.loss(*shaped, **options)


def test_every_metric_is_declared_and_every_declared_metric_is_reported(kind: type[Objective[Any]]) -> None:
    reference = troll.Reference(torch.full((3, 4), -1.0, dtype=torch.float64), 0.1)
    out = output(kind(entropy_coefficient=0.1), reference=reference)
    assert out.metrics.keys() == kind.metrics.keys()


def test_its_losses_add_up_to_the_loss(kind: type[Objective[Any]]) -> None:
    out = output(kind())
    losses = [value for name, value in out.metrics.items() if kind.metrics[name].reduction == "loss"]
    assert out.loss.item() == pytest.approx(torch.stack(losses).sum().item())


def test_gradients_point_somewhere(kind: type[Objective[Any]]) -> None:
    new, old_logits, tokens, advantages = make_case(12, 30, 2.0, 0.1).tensors()
    old = troll.sparsify(old_logits, tokens, **kind().sparsity)
    kind().loss(new, old, tokens, advantages, sequence_ids=torch.arange(12)).loss.backward()
    assert new.grad is not None
    assert 0 < float(new.grad.norm()) < float("inf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: needs a positive number, got 0.0"),
        ({"temperature": float("nan")}, "temperature: needs a positive number, got nan"),
        ({"ratio": "word"}, "ratio: 'word' is not one of token, sequence"),
        ({"aggregation": "sum"}, "aggregation: 'sum' is not one of token-mean, "),
        ({"entropy_coefficient": -0.1}, "entropy_coefficient: needs a number of at least 0, got -0.1"),
    ],
)
def test_options_are_checked_when_it_is_made(kind: type[Objective[Any]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_an_option_of_another_objective_is_refused(kind: type[Objective[Any]]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'clipping'"):
        kind(clipping=0.2)  # type: ignore[call-arg]


def test_it_is_a_value(kind: type[Objective[Any]]) -> None:
    assert kind(temperature=0.7) == kind(temperature=0.7) != kind()
    assert len({kind(temperature=0.7), kind(temperature=0.7), kind()}) == 2
    with pytest.raises(AttributeError, match="cannot assign to field"):
        kind().temperature = 0.7  # type: ignore[misc]


def test_packed_tokens_without_sequences_are_refused_where_sequences_matter(kind: type[Objective[Any]]) -> None:
    new, old_logits, tokens, advantages = make_case(4, 10, 1.0, 0.5).tensors()
    old = troll.sparsify(old_logits, tokens, **kind().sparsity)
    for objective in (kind(ratio="sequence"), kind(aggregation="seq-mean-token-mean")):
        with pytest.raises(ValueError, match=r"sequence_ids: .* needs sequences"):
            objective.loss(new, old, tokens, advantages)


def test_a_dense_gradient_is_never_given_as_a_sparse_tensor(kind: type[Objective[Any]]) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, 8, generator=generator), torch.randn(50, 8, generator=generator)
    tokens, weight = torch.arange(5), weight.requires_grad_()
    old = troll.fused_sparsify(hidden + 0.1, weight, tokens, **kind().sparsity)
    objective = kind(backward="dense") if kind is troll.Troll else kind()
    for mask in (torch.ones(5), torch.zeros(5)):
        options = {"sparse_weight_grad": True, "sequence_ids": tokens}
        out = objective.fused_loss(hidden, weight, old, tokens, torch.ones(5), mask, **options)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(out.loss, weight)
        assert not gradient.is_sparse


def test_every_aggregation_has_a_mode() -> None:
    assert AGGREGATIONS.keys() == set(get_args(Aggregation))


def test_troll_needs_rows_of_the_old_policy() -> None:
    new, old_logits, tokens, advantages = make_case(4, 10, 1.0, 0.5).tensors()
    log_probs = old_logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    with pytest.raises(ValueError, match="old: needs the old policy's rows"):
        troll.Troll().loss(new, log_probs, tokens, advantages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_bound": 0.0}, "kl_bound: needs a positive"),
        ({"alpha": -1.0}, "alpha: needs a number of at least 0"),
        ({"support": "new"}, "support: 'new' is not one of union, old"),
        ({"tail": "even"}, "tail: 'even' is not one of constant, mass"),
        ({"max_tokens": 0}, "max_tokens: needs at least 1"),
        ({"dropped_mass": 1.0}, r"dropped_mass: needs a value in \[0, 1\)"),
        ({"default_prob": 0.0}, "default_prob: needs a positive"),
        ({"backward": "fast"}, "backward: 'fast' is not one of auto, sparse, dense"),
        ({"dropped_mass": "1e-5"}, "dropped_mass: needs a number, got '1e-5'"),
        ({"kl_bound": None}, "kl_bound: needs a number, got None"),
        ({"max_tokens": 64.0}, r"max_tokens: needs a whole number, got 64\.0"),
    ],
)
def test_trolls_options_are_checked_when_it_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        troll.Troll(**options)


def test_a_tail_of_more_than_the_whole_mass_is_refused_when_the_vocabulary_is_known() -> None:
    new, old_logits, tokens, advantages = make_case(4, 10, 1.0, 0.5).tensors()
    old = troll.sparsify(old_logits, tokens)
    with pytest.raises(ValueError, match=r"default_prob: 0\.1 for each of 10 tokens is more than the whole mass"):
        troll.Troll(default_prob=0.1).loss(new, old, tokens, advantages)
