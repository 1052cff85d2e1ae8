"""KL to the reference, in the loss and in the reward, against the formulas; and what the reference is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from tests.workers.training import tiny
from tests.workers.training.optim.test_update import hyperparameters, sampled
from troll import SparseLogProbs
from workers.modeling import policy
from workers.modeling.lora import Lora
from workers.modeling.policy import Policy
from workers.rollouts.grammar import everything
from workers.training.data.batch import Allowed, TrainingSample
from workers.training.optim import objective, reference, update
from workers.training.optim.update import MiniBatch

CPU = torch.device("cpu")
ADAPTERS = Lora(4, 32, 3, "tiny")


@pytest.fixture(params=[0, 4], ids=["all weights", "adapters"])
def moved(request: pytest.FixtureRequest, base: Path) -> tuple[Policy, Policy]:
    """A policy that has left its base model, and the reference."""
    loaded = policy.load(base, CPU, ADAPTERS if request.param else None)
    with torch.no_grad():
        for number, parameter in enumerate(p for p in loaded.model.parameters() if p.requires_grad):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return loaded, reference.load(base, loaded)


def read(
    loaded: Policy, frozen: Policy, h: ResolvedHyperparameters, groups: list[list[TrainingSample]]
) -> tuple[list[MiniBatch], list[list[SparseLogProbs]]]:
    batches = update.plan(groups, loaded, h)
    return reference.read(frozen, batches, h), update.read_old_policy(loaded, batches, h)


def estimates(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """KL(policy ‖ reference) of each token, from a difference of float64 log-probabilities."""
    log_ratio = ours.double() - theirs.double()
    return {"k1": log_ratio, "k2": log_ratio**2 / 2, "k3": (-log_ratio).exp() - 1 + log_ratio}[name]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_reference_is_the_base_model_at_the_sampling_temperature(
    base: Path, moved: tuple[Policy, Policy], temperature: float
) -> None:
    h = hyperparameters(temperature=temperature)
    (batch,), ((old, *_),) = read(*moved, h, sampled(moved[0]))
    part = batch.parts[0]
    assert part.reference_log_probs is not None
    logits = policy.load(base, CPU).logits(part).detach() / temperature
    exact = logits.log_softmax(-1).gather(-1, part.tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(part.reference_log_probs, exact, atol=1e-5, rtol=0)
    # And the policy is as it was, its adapters at work.
    assert float((old.token_log_probs - exact).abs().max()) > 1e-3
    again = objective.old_policy(moved[0], part, h)
    assert torch.equal(again.token_log_probs, old.token_log_probs)
    assert any(parameter.requires_grad for parameter in moved[0].model.parameters())


def test_with_adapters_it_is_no_copy_and_without_it_is_frozen(base: Path, moved: tuple[Policy, Policy]) -> None:
    loaded, frozen = moved
    assert (frozen is loaded) == (loaded.adapter is not None)
    if frozen is not loaded:
        assert not any(parameter.requires_grad for parameter in frozen.model.parameters())


def test_a_grammar_holds_the_reference_as_it_holds_the_policy(base: Path) -> None:
    loaded = policy.load(base, CPU)
    generator = torch.Generator().manual_seed(0)

    def some(samples: Any) -> Allowed:
        tokens = [token for sample in samples for token in sample.rollout.token_ids]
        masks = everything(len(tokens), loaded.vocabulary_size).clone()
        masks &= torch.randint(0, 2**31 - 1, masks.shape, generator=generator).int()
        for row, token in enumerate(tokens):
            masks[row, token // 32] |= 1 << (token % 32)
        return Allowed.of(masks)

    h = hyperparameters()
    batches = update.plan(sampled(loaded), loaded, h, some)
    (batch,), ((old, *_),) = reference.read(loaded, batches, h), update.read_old_policy(loaded, batches, h)
    plain = update.plan(sampled(loaded), loaded, h)[0].parts[0]
    assert torch.equal(batch.parts[0].reference_log_probs, old.token_log_probs)  # type: ignore[arg-type]
    assert not torch.equal(objective.reference_log_probs(loaded, plain, h), old.token_log_probs)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("name", ["troll", "clip"])
def test_in_the_loss_it_is_its_mean_times_the_coefficient(
    moved: tuple[Policy, Policy], name: str, estimator: str
) -> None:
    h = hyperparameters(objective=name, kl_coefficient=0.3, kl_estimator=estimator)
    (batch,), ((old, *_),) = read(*moved, h, sampled(moved[0]))
    part = batch.parts[0]
    assert part.reference_log_probs is not None
    output = objective.loss(moved[0], part, old, h, batch.normalizer)
    without = objective.loss(moved[0], replace(part, reference_log_probs=None), old, h, batch.normalizer)
    expected = estimates(estimator, old.token_log_probs, part.reference_log_probs).mean()
    assert float(output.loss - without.loss) == pytest.approx(0.3 * float(expected), rel=1e-4, abs=1e-6)
    assert float(output.metrics["reference_kl"]) == pytest.approx(float(expected), rel=1e-4)
    assert "reference_kl" not in without.metrics


def test_a_reference_in_the_reward_is_no_part_of_the_loss(moved: tuple[Policy, Policy]) -> None:
    h = hyperparameters(kl_coefficient=0.3, kl_in="reward")
    (batch,), ((old, *_),) = read(*moved, h, sampled(moved[0]))
    output = objective.loss(moved[0], batch.parts[0], old, h, batch.normalizer)
    assert "reference_kl" not in output.metrics


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_in_the_reward_an_answer_loses_what_its_tokens_cost(
    moved: tuple[Policy, Policy], monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    monkeypatch.setattr(update, "MICRO_BATCH_TOKENS", 40)
    h = hyperparameters(kl_coefficient=0.3, kl_in="reward", kl_estimator=estimator, advantage="rloo", mini_batches=2)
    numbers = iter(range(100))
    groups = [
        [replace(sample, reward=number % 3 / 2, number=number) for sample in group if (number := next(numbers)) >= 0]
        for group in sampled(moved[0])
    ]
    batches, old = read(*moved, h, groups)
    taken, told = reference.take_from_rewards(batches, old, groups, h)
    left: dict[int, float] = {}
    found: dict[int, float] = {}
    every = []
    for batch, rows in zip(taken, old, strict=True):
        for part, row in zip(batch.parts, rows, strict=True):
            assert part.reference_log_probs is not None
            kl = estimates(estimator, row.token_log_probs, part.reference_log_probs)
            every.append(kl)
            for place, sample in enumerate(part.samples):
                own = part.sequence_ids == place
                left[sample.number] = sample.reward - 0.3 * float(kl[own].sum())
                (found[sample.number],) = set(part.advantages[own].tolist())
    for group in groups:
        for sample in group:
            others = [left[other.number] for other in group if other is not sample]
            expected = left[sample.number] - sum(others) / len(others)
            assert found[sample.number] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert told["reference_kl"] == pytest.approx(float(torch.cat(every).mean()), rel=1e-6)


def test_an_untrained_policy_costs_nothing_and_keeps_its_advantages(base: Path) -> None:
    loaded = policy.load(base, CPU)
    h = hyperparameters(kl_coefficient=0.3, kl_in="reward", advantage="dr_grpo")
    numbers = iter(range(100))
    groups = [
        [replace(sample, reward=sample.advantage, number=next(numbers)) for sample in group]
        for group in sampled(loaded)
    ]
    batches, old = read(loaded, reference.load(base, loaded), h, groups)
    taken, told = reference.take_from_rewards(batches, old, groups, h)
    assert told == {"reference_kl": 0.0}
    for before, after in zip(batches[0].parts, taken[0].parts, strict=True):
        torch.testing.assert_close(after.advantages, before.advantages - 0.0625, atol=1e-6, rtol=0)


def test_a_step_without_rewards_has_no_divergence(base: Path) -> None:
    assert reference.take_from_rewards([], [], [[]], hyperparameters(kl_in="reward")) == ([], {})


def test_every_family_is_its_own_reference_before_training(tmp_path: Path) -> None:
    for family in ("gemma2", "mamba"):
        loaded = policy.load(tiny.save(tmp_path / family, family), CPU)
        (batch,), ((old, *_),) = read(
            loaded, reference.load(tmp_path / family, loaded), hyperparameters(), sampled(loaded)
        )
        assert torch.equal(batch.parts[0].reference_log_probs, old.token_log_probs)  # type: ignore[arg-type]
