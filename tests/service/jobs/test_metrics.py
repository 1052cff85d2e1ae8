"""Metrics events: what trainers may tell, and how it is documented."""

import pytest
from pydantic import ValidationError

from service.app import create_app
from service.jobs.metrics import SupervisedMetrics, SupervisedTiming
from service.jobs.schemas import EventObject

SUPERVISED = {
    "step": 1,
    "total_steps": 2,
    "train_loss": 0.5,
    "train_mean_token_accuracy": 0.75,
    "valid_loss": None,
    "valid_mean_token_accuracy": None,
    "full_valid_loss": None,
    "full_valid_mean_token_accuracy": None,
    "train_tokens": 12,
    "timing": SupervisedTiming(step={"training": 0.25}),
    "troll": {"lr": 1e-5},
}


def test_events_are_documented_with_the_metrics_of_each_method() -> None:
    schemas = create_app().openapi()["components"]["schemas"]
    shown = [each.get("$ref", "") for each in schemas["EventObject"]["properties"]["data"]["anyOf"]]
    assert {"#/components/schemas/ReinforcementMetrics", "#/components/schemas/SupervisedMetrics"} <= set(shown)
    assert "frac_reward_zero_std" in schemas["ReinforcementMetrics"]["properties"]


def test_a_trainer_cannot_tell_a_number_that_nobody_documented() -> None:
    SupervisedMetrics.model_validate(SUPERVISED)
    with pytest.raises(ValidationError, match="surprise"):
        SupervisedMetrics.model_validate(SUPERVISED | {"surprise": 1.0})


def test_what_a_newer_worker_told_is_shown_as_it_is() -> None:
    told = {"step": 3, "surprise": {"of": "another version"}}
    event = EventObject(id="ftevent-1", created_at=0, level="info", message="m", type="metrics", data=told, seq=1)
    assert event.model_dump()["data"] == told
