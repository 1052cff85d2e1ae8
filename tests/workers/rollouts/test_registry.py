"""Engines that can be asked for are those that there are."""

from typing import get_args

from service.contracts.engines import ENGINES as DECLARED
from service.contracts.engines import EngineName
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from service.settings import Settings
from workers.rollouts.registry import ENGINES


def test_what_is_declared_can_be_asked_for_and_can_sample() -> None:
    names = get_args(EngineName)
    assert tuple(DECLARED) == tuple(ENGINES) == names


def test_jobs_and_operators_may_ask_for_every_engine() -> None:
    assert EngineName in get_args(Hyperparameters.model_fields["rollout_engine"].annotation)
    for model in (ResolvedHyperparameters, Settings):
        declared: object = model.model_fields["rollout_engine"].annotation
        assert declared == EngineName
