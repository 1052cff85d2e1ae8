"""Updates: the same loss however a batch is split, and a first one that starts from the policy that sampled."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from tests.workers.training import tiny
from workers.errors import RunError
from workers.modeling import policy
from workers.modeling.policy import Policy
from workers.rollouts.engine import Rollout, Sampling
from workers.rollouts.transformers import TransformersEngine
from workers.training.data.batch import TrainingSample
from workers.training.optim import update

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [15, 5], [7, 7, 7, 8]]


def hyperparameters(**asked: object) -> ResolvedHyperparameters:
    wanted = {"mini_batches": 1, "learning_rate": 1e-2, "max_completion_tokens": 10, "batch_size": 4}
    return resolve(Hyperparameters.model_validate(wanted | asked), training_rows=8)


def load(tmp_path: Path, family: str = "qwen3") -> Policy:
    return policy.load(tiny.save(tmp_path / family, family), torch.device("cpu"))


def sampled(loaded: Policy, length: int = 10) -> list[list[TrainingSample]]:
    """Groups of answers that the policy gave, with advantages of both signs."""
    engine = TransformersEngine(loaded.model, loaded.stop_ids, loaded.context_length)
    groups = engine.generate(PROMPTS, 4, Sampling(1.0, length, seed=1))
    values = (1.5, -0.5, -1.0, 0.25)
    return [
        [TrainingSample(prompt, rollout, value) for rollout, value in zip(group, values, strict=True)]
        for prompt, group in zip(PROMPTS, groups, strict=True)
    ]


def train(
    loaded: Policy, groups: Sequence[Sequence[TrainingSample]], h: ResolvedHyperparameters, updates: int = 1
) -> tuple[update.Numbers, list[Tensor]]:
    """The numbers of the last update and the gradients it was made of, which no clipping changed."""
    optimizer = update.make_optimizer(loaded, h)
    batches = update.plan(groups, loaded, h)
    old = update.read_old_policy(loaded, batches, h)
    gradients: list[Tensor] = []

    def keep(*_: object) -> None:
        gradients[:] = [p.grad.clone() for p in loaded.model.parameters() if p.grad is not None]

    optimizer.register_step_pre_hook(keep)
    for _ in range(updates):
        numbers = update.update_policy(loaded, optimizer, batches, old, h, step=1)
    return numbers, gradients


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
@pytest.mark.parametrize("objective", ["troll", "clip", "dppo"])
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_the_loss_does_not_depend_on_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, objective: str, aggregation: str
) -> None:
    h = hyperparameters(objective=objective, aggregation=aggregation, max_grad_norm=1000, learning_rate=3e-3)
    results = []
    for budget, shared in ((10_000, True), (10_000, False), (40, True), (1, False)):
        loaded = load(tmp_path, family)
        loaded.longest_shared *= shared
        monkeypatch.setattr(update, "MICRO_BATCH_TOKENS", budget)
        numbers, gradients = train(loaded, sampled(loaded), h)
        results.append((numbers["policy_loss"], torch.cat([gradient.flatten() for gradient in gradients])))
    loss, gradient = results[0]
    for other_loss, other_gradient in results[1:]:
        # Advantages of both signs cancel: what is left is rounded as coarsely as what it was made of.
        assert other_loss == pytest.approx(loss, rel=1e-6, abs=1e-7)
        assert float((other_gradient - gradient).norm()) <= 1e-6 * float(gradient.norm())


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_the_first_update_sees_a_ratio_of_1_and_no_divergence(tmp_path: Path, family: str) -> None:
    loaded = load(tmp_path, family)
    numbers, _ = train(loaded, sampled(loaded), hyperparameters())
    assert (numbers["ratio"], numbers["ratio_max"]) == (1.0, 1.0)
    assert (numbers["kl_before_max"], numbers["fraction_projected"], numbers["regression_loss"]) == (0.0, 0.0, 0.0)


def test_an_update_leaves_no_gradients_in_memory(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    _, gradients = train(loaded, sampled(loaded), hyperparameters())
    assert gradients
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_later_updates_stay_in_the_trust_region(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    numbers, _ = train(loaded, sampled(loaded), hyperparameters(learning_rate=3e-2, kl_bound=0.02), updates=3)
    assert numbers["kl_before_max"] > 0.02
    assert numbers["kl_after_max"] <= 0.02 + 1e-6
    assert 0 < numbers["fraction_projected"] <= 1
    assert 0 < numbers["beta"] < 1


@pytest.mark.parametrize("objective", ["troll", "clip", "dppo"])
def test_updates_make_good_answers_likelier_than_bad_ones(tmp_path: Path, objective: str) -> None:
    loaded = load(tmp_path)
    groups, h = sampled(loaded), hyperparameters(objective=objective)
    before = update.read_old_policy(loaded, update.plan(groups, loaded, h), h)
    train(loaded, groups, h, updates=3)
    batches = update.plan(groups, loaded, h)
    after = update.read_old_policy(loaded, batches, h)
    change = after[0][0].token_log_probs - before[0][0].token_log_probs
    assert float((change * batches[0].parts[0].advantages).mean()) > 0


def test_the_samplers_log_probs_are_the_trainers(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    batches = update.plan(sampled(loaded), loaded, hyperparameters())
    numbers = update.correct_mismatch(
        batches, update.read_old_policy(loaded, batches, hyperparameters()), hyperparameters()
    )[1]
    assert numbers["mismatch_abs_max"] < 1e-4


def test_the_rate_warms_up_and_stays() -> None:
    h = hyperparameters(warmup_steps=4)
    assert [update.learning_rate(h, step) for step in (1, 2, 4, 9)] == pytest.approx([0.0025, 0.005, 0.01, 0.01])


def test_a_step_without_rewards_changes_nothing(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    before = [parameter.clone() for parameter in loaded.model.parameters()]
    numbers, _ = train(loaded, [[], []], hyperparameters())
    assert numbers == {"lr": 0.01}
    assert all(torch.equal(old, new) for old, new in zip(before, loaded.model.parameters(), strict=True))


@pytest.mark.parametrize(("tokens", "code"), [([7, 8, 1], "non_finite_gradient"), ([7] * 9 + [1], "non_finite_loss")])
def test_numbers_that_are_not_finite_end_the_run_before_the_weights_change(
    tmp_path: Path, tokens: list[int], code: str
) -> None:
    loaded = load(tmp_path)
    before = [parameter.clone() for parameter in loaded.model.parameters()]
    # Ten such losses are more than float32 holds; three are not, but their gradient is.
    groups = [[TrainingSample([5, 6], Rollout(tokens, [-1.0] * len(tokens), "stop"), 1e38)]]
    with pytest.raises(RunError) as caught:
        train(loaded, groups, hyperparameters(kl_bound=10.0))
    assert caught.value.code == code
    assert all(torch.equal(old, new) for old, new in zip(before, loaded.model.parameters(), strict=True))


def test_hidden_states_that_are_not_numbers_end_the_run(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    groups = sampled(loaded)
    with torch.no_grad():
        next(loaded.model.parameters())[0, 0] = torch.nan
    with pytest.raises(RunError) as caught:
        train(loaded, groups, hyperparameters())
    assert caught.value.code == "non_finite_loss"
