"""Objectives, estimators and aggregations are found by name: what the service offers, the registries have."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import Tensor

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from tests.workers.training import tiny
from tests.workers.training.data.test_batch import group
from troll import OBJECTIVES, Cispo, Clip, Dppo, Gspo, Sapo, Troll
from troll.advantages import ESTIMATORS
from troll.aggregation import AGGREGATIONS
from troll.batch import Batch
from troll.metrics import MIN, Metric
from troll.objectives.base import Evaluation
from troll.objectives.surrogate import Surrogate
from troll.sparse import Kept
from workers.modeling import policy
from workers.rollouts.engine import Rollout
from workers.training.data import batch
from workers.training.data.batch import TrainingSample
from workers.training.optim import mismatch, objective, update


@pytest.mark.parametrize(
    ("hyperparameter", "registry"),
    [
        ("objective", OBJECTIVES.keys()),
        ("advantage", ESTIMATORS.keys() | {"gae"}),
        ("aggregation", AGGREGATIONS.keys()),
        ("mismatch_correction", mismatch.CORRECTIONS.keys()),
    ],
)
def test_what_the_service_offers_is_what_the_trainer_has(hyperparameter: str, registry: set[str]) -> None:
    offered = get_args(Hyperparameters.model_fields[hyperparameter].annotation)
    assert set(offered) == registry


def hyperparameters(**asked: Any) -> ResolvedHyperparameters:
    return resolve(Hyperparameters.model_validate({"mini_batches": 1} | asked), training_rows=8)


def test_the_defaults_of_jobs_are_those_of_the_package() -> None:
    assert objective.make(hyperparameters()) == Troll()
    assert objective.make(hyperparameters(objective="clip")) == Clip(dual_clip=10.0)
    assert objective.make(hyperparameters(objective="dppo")) == Dppo()
    assert objective.make(hyperparameters(objective="gspo")) == Gspo()
    assert objective.make(hyperparameters(objective="cispo")) == Cispo()
    assert objective.make(hyperparameters(objective="sapo")) == Sapo()


@pytest.mark.parametrize(
    ("name", "hyperparameter", "option", "value"),
    [
        ("troll", "kl_bound", "kl_bound", 0.3),
        ("troll", "alpha", "alpha", 0.3),
        ("troll", "max_tokens_kept", "max_tokens", 7),
        ("troll", "dropped_mass", "dropped_mass", 0.3),
        ("clip", "clip_low", "clip_low", 0.3),
        ("clip", "clip_high", "clip_high", 0.3),
        ("clip", "dual_clip", "dual_clip", 3.0),
        ("troll", "support", "support", "old"),
        ("troll", "tail", "tail", "mass"),
        ("dppo", "dppo_threshold", "threshold", 0.3),
        ("gspo", "clip_low", "clip_low", 0.3),
        ("gspo", "clip_high", "clip_high", 0.3),
        ("cispo", "clip_high", "clip_high", 0.3),
        ("sapo", "sapo_temperature_pos", "temperature_pos", 0.3),
        ("sapo", "sapo_temperature_neg", "temperature_neg", 0.3),
        *((name, "ratio", "ratio", "sequence") for name in OBJECTIVES if name != "gspo"),
        *((name, "entropy_coefficient", "entropy_coefficient", 0.3) for name in OBJECTIVES),
        *((name, same, same, 0.3) for name in OBJECTIVES for same in ["temperature"]),
        *((name, "aggregation", "aggregation", "seq-mean-token-sum") for name in OBJECTIVES),
    ],
)
def test_a_hyperparameter_sets_its_option_and_no_other(name: str, hyperparameter: str, option: str, value: Any) -> None:
    default = objective.make(hyperparameters(objective=name))
    made = objective.make(hyperparameters(objective=name, **{hyperparameter: value}))
    changed = {f.name for f in fields(made) if getattr(made, f.name) != getattr(default, f.name)}
    assert (changed, getattr(made, option)) == ({option}, value)


@pytest.mark.parametrize(("asked", "threshold"), [({}, 0.05), ({"dppo_threshold": 0.3}, 0.3)])
def test_the_region_of_dppo_is_that_of_its_divergence_unless_it_is_given(asked: Any, threshold: float) -> None:
    made = objective.make(hyperparameters(objective="dppo", dppo_divergence="kl", **asked))
    assert made == Dppo(divergence="kl", threshold=threshold)


@dataclass(frozen=True, kw_only=True)
class Plain(Surrogate):
    """What a newcomer adds: `-r A`, and the least ratio as a metric of its own."""

    metrics: ClassVar[dict[str, Metric]] = {**Surrogate.metrics, "ratio_min": MIN}

    def rule(self, ratio: Tensor, advantages: Tensor, new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        return -ratio * advantages, torch.zeros_like(ratio, dtype=torch.bool)

    def evaluate(self, kept: Kept, old: Tensor, batch: Batch) -> Evaluation:
        losses, metrics = super().evaluate(kept, old, batch)
        return Evaluation(losses, metrics | {"ratio_min": (kept.log_probs[:, 0] - old).exp().min().detach()})


class Undeclared(Plain):
    """Forgets to say how its metric is reduced."""

    metrics = Surrogate.metrics


def trained_by(
    kind: type[Surrogate], base: Path, monkeypatch: pytest.MonkeyPatch, token_budget: int, rate: float = 1e-3
) -> tuple[update.Numbers, int]:
    """The numbers of an update of a registered ``kind``, and how many micro-batches it took."""
    monkeypatch.setitem(OBJECTIVES, "new", kind)
    monkeypatch.setattr(update, "MICRO_BATCH_TOKENS", token_budget)
    loaded = policy.load(base, torch.device("cpu"))
    h = hyperparameters(learning_rate=rate).model_copy(update={"objective": "new", "ratio": kind().ratio})
    answers = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 5]]
    made = [[TrainingSample([3, 4], Rollout(ids, [-2.0] * len(ids), "stop"), (-1.0) ** len(ids)) for ids in answers]]
    optimizer = update.make_optimizer(loaded, h)
    batches = update.plan(made, loaded, h)
    old = update.read_old_policy(loaded, batches, h)
    update.update_policy(loaded, optimizer, batches, old, h, step=1)
    numbers = update.update_policy(loaded, optimizer, batches, old, h, step=1)
    return numbers, sum(len(each.parts) for each in batches)


def test_a_registered_objective_trains_and_its_metrics_are_reduced_as_declared(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, one = trained_by(Plain, base, monkeypatch, 10_000)
    split, several = trained_by(Plain, base, monkeypatch, 1)
    assert one < several
    assert whole["ratio_min"] < whole["ratio"] < whole["ratio_max"]
    assert split["ratio_min"] == pytest.approx(whole["ratio_min"], rel=1e-5)
    assert split["ratio"] == pytest.approx(whole["ratio"], rel=1e-5)


def test_a_metric_that_nobody_declared_ends_the_update(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="metrics: ratio_min: not declared"):
        trained_by(Undeclared, base, monkeypatch, 10_000)


def test_a_registered_estimator_makes_advantages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ESTIMATORS, "doubled", lambda of: 2 * of.rewards + of.group_ids)
    doubled = hyperparameters().model_copy(update={"advantage": "doubled"})
    groups = batch.trainable([group(1.0, 0.0), group(3.0, None)], doubled)
    assert [[sample.advantage for sample in each] for each in groups] == [[2.0, 0.0], [7.0]]


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_of_the_package_can_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, family: str
) -> None:
    folder = tiny.save(tmp_path / family, family)
    # In steps so small that GSPO's narrow region is not left.
    numbers, _ = trained_by(OBJECTIVES[name], folder, monkeypatch, 10_000, rate=1e-7)  # type: ignore[arg-type]
    assert numbers["tokens"] == 10
    assert numbers["grad_norm"] > 0
