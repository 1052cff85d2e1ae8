"""A critic: values of every family, estimates of packed answers, and the same loss however a batch is split."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from tests.workers.training import tiny
from tests.workers.training.optim.test_update import hyperparameters, load, sampled
from workers.errors import RunError
from workers.modeling import policy
from workers.modeling.critic import load_critic, values_of
from workers.modeling.lora import Lora
from workers.modeling.policy import Policy
from workers.training.data.batch import TrainingSample
from workers.training.optim import critic, update
from workers.training.optim.critic import Critic

CPU = torch.device("cpu")


def settings(**asked: Any) -> ResolvedHyperparameters:
    return hyperparameters(**{"advantage": "gae", "critic_learning_rate": 1e-2, "max_grad_norm": 1000.0} | asked)


def make(folder: Path, h: ResolvedHyperparameters, adapters: Lora | None = None) -> Critic:
    model = load_critic(folder, CPU, adapters)
    return Critic(model, update.make_optimizer(model, h))


def earned(loaded: Policy) -> list[list[TrainingSample]]:
    """Answers that the policy gave; each earns what its length makes of it."""
    return [
        [replace(sample, reward=0.1 * len(sample.rollout.token_ids) - 0.5) for sample in group]
        for group in sampled(loaded)
    ]


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_every_family_can_be_a_critic(tmp_path: Path, family: str) -> None:
    loaded, h = load(tmp_path, family), settings()
    made = make(tmp_path / family, h)
    batches, told = critic.estimate(made, update.plan(earned(loaded), loaded, h), h)
    assert told["value_mean"] == 0
    numbers = [critic.update_critic(made, batches, h, step=1) for _ in range(3)]
    assert made.model.model.get_output_embeddings().weight.shape[0] == 1
    assert 0 < numbers[-1]["value_loss"] < numbers[0]["value_loss"]
    # Not the head alone: from the second update on, what stands before it learns as well.
    embeddings = made.model.model.get_input_embeddings().weight
    assert not torch.equal(embeddings, loaded.model.get_input_embeddings().weight)


def test_with_lora_the_adapters_and_the_head_learn_alone(base: Path) -> None:
    h = settings(lora_rank=2)
    loaded, made = policy.load(base, CPU), make(base, h, Lora(2, 32, 3, "tiny"))
    before = {name: parameter.clone() for name, parameter in made.model.model.named_parameters()}
    batches, _ = critic.estimate(made, update.plan(earned(loaded), loaded, h), h)
    for _ in range(2):
        critic.update_critic(made, batches, h, step=1)
    after = dict(made.model.model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in moved if "lora_" not in name} == {"lm_head.weight"}
    assert any("lora_" in name for name in moved)


def by_loop(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The advantage of each token of an answer, in Python's own floats."""
    found = []
    for t in range(len(rewards)):
        following = [*values[1:], 0.0]
        surprises = [rewards[s] + gamma * following[s] - values[s] for s in range(t, len(rewards))]
        found.append(math.fsum((gamma * lam) ** k * surprise for k, surprise in enumerate(surprises)))
    return found


@pytest.mark.parametrize("cost", [0.0, 0.3])
def test_estimates_of_packed_answers_are_those_of_each_alone(
    base: Path, monkeypatch: pytest.MonkeyPatch, cost: float
) -> None:
    monkeypatch.setattr(update, "MICRO_BATCH_TOKENS", 60)
    h = settings(gae_gamma=0.9, gae_lambda=0.8, mini_batches=2)
    loaded, made = policy.load(base, CPU), make(base, h)
    torch.nn.init.normal_(made.model.lm_head.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    batches = update.plan(earned(loaded), loaded, h)
    costs = {id(part): cost * torch.arange(len(part.tokens)).double() for batch in batches for part in batch.parts}
    if cost:
        batches = [replace(b, parts=[replace(part, kl_costs=costs[id(part)]) for part in b.parts]) for b in batches]
    estimated, told = critic.estimate(made, batches, h)
    parts = [part for batch in estimated for part in batch.parts]
    assert len(parts) > 2
    plain: list[float] = []
    for part in parts:
        assert part.returns is not None
        values = values_of(made.model, part).double()
        taken = part.kl_costs if part.kl_costs is not None else torch.zeros(len(part.tokens))
        for number, sample in enumerate(part.samples):
            own = part.sequence_ids == number
            rewards = (-taken[own]).tolist()
            rewards[-1] += sample.reward
            expected = by_loop(rewards, values[own].tolist(), 0.9, 0.8)
            assert part.returns[own].tolist() == pytest.approx(
                [a + v for a, v in zip(expected, values[own].tolist(), strict=True)], rel=1e-4, abs=1e-5
            )
            plain += expected
    exact = torch.tensor(plain, dtype=torch.float64)
    whitened = torch.cat([part.advantages for part in parts])
    torch.testing.assert_close(whitened, ((exact - exact.mean()) / exact.std()).float(), rtol=1e-3, atol=1e-4)
    returns, values = (torch.cat([getattr(part, name) for part in parts]).double() for name in ("returns", "values"))
    assert told["explained_variance"] == pytest.approx(
        float(1 - (returns - values).var() / returns.var()), rel=1e-4, abs=1e-6
    )
    assert told["return_mean"] == pytest.approx(float(returns.mean()), rel=1e-5)


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_critics_loss_does_not_depend_on_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    h, results = settings(aggregation="seq-mean-token-mean", epochs=epochs, critic_learning_rate=1e-4), []
    for budget in (10_000, 40, 1):
        monkeypatch.setattr(update, "MICRO_BATCH_TOKENS", budget)
        loaded = load(tmp_path)
        made = make(tmp_path / "qwen3", h)
        batches, _ = critic.estimate(made, update.plan(earned(loaded), loaded, h), h)
        numbers = critic.update_critic(made, batches, h, step=1)
        results.append((numbers["value_loss"], numbers["critic_grad_norm"], numbers["tokens"]))
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)


def test_a_step_without_rewards_teaches_a_critic_nothing(base: Path) -> None:
    h = settings()
    made = make(base, h)
    before = {name: parameter.clone() for name, parameter in made.model.model.named_parameters()}
    assert critic.estimate(made, [], h) == ([], {})
    assert critic.update_critic(made, [], h, step=1) == {}
    assert all(torch.equal(before[name], p) for name, p in made.model.model.named_parameters())


def test_returns_that_are_all_the_same_have_no_variance_to_explain(base: Path) -> None:
    h = settings()
    loaded, made = policy.load(base, CPU), make(base, h)
    same = [[replace(sample, reward=0.5) for sample in group] for group in sampled(loaded)]
    batches, told = critic.estimate(made, update.plan(same, loaded, h), h)
    assert told == {"value_mean": 0.0, "return_mean": 0.5}
    assert all(torch.count_nonzero(part.advantages) == 0 for part in batches[0].parts)


def test_values_that_are_not_numbers_end_the_run(base: Path) -> None:
    h = settings()
    loaded, made = policy.load(base, CPU), make(base, h)
    batches, _ = critic.estimate(made, update.plan(earned(loaded), loaded, h), h)
    with torch.no_grad():
        next(made.model.model.parameters())[:] = torch.nan
    with pytest.raises(RunError) as caught:
        critic.update_critic(made, batches, h, step=1)
    assert caught.value.code == "non_finite_loss"


def test_a_model_whose_hidden_states_are_not_known_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "recognise", lambda model: None)
    with pytest.raises(RunError, match="which a critic needs: set advantage to another") as caught:
        load_critic(base, CPU)
    assert caught.value.code == "invalid_model"
