"""What operators see and set of workers and organisations."""

import json
from typing import Any

import pytest

from service.core.db import transaction
from service.scheduling import repository as scheduling
from tests.conftest import Key


@pytest.fixture
def worker(database: object) -> str:
    with transaction("troll_worker") as session:
        scheduling.register(session, "training@one", gpus=2, engines=["transformers", "vllm"])
    return "training@one"


def test_workers_are_listed_drained_and_resumed(troll: Any, worker: str) -> None:
    states = []
    for command in ((), ("drain", worker), ("resume", worker)):
        if command:
            assert troll("workers", *command).exit_code == 0
        [shown] = json.loads(troll("workers", "list", "--json").stdout)
        states.append(shown["state"])
    assert states == ["ready", "draining", "ready"]
    assert (shown["gpus"], shown["engines"], shown["job"]) == (2, ["transformers", "vllm"], None)


def test_a_worker_of_another_name_is_an_error_that_names_those_there_are(troll: Any, worker: str) -> None:
    result = troll("workers", "drain", "training@two")
    assert result.exit_code == 1
    assert "training@one" in result.output


def test_weights_are_set_and_shown(troll: Any, api_key: Key) -> None:
    assert troll("admin", "weight", "acme", "2.5").exit_code == 0
    [shown] = json.loads(troll("admin", "organizations", "--json").stdout)
    assert (shown["name"], shown["weight"], shown["recent_gpu_seconds"]) == ("acme", 2.5, 0)


@pytest.mark.parametrize("weight", ["0", "-1", "many"])
def test_another_weight_is_refused(troll: Any, api_key: Key, weight: str) -> None:
    assert troll("admin", "weight", "acme", "--", weight).exit_code == 2


def test_an_organisation_that_is_not_there_is_an_error(troll: Any, database: object) -> None:
    result = troll("admin", "weight", "nobody", "2")
    assert result.exit_code == 1
    assert "nobody" in result.output


def test_budgets_are_set_shown_and_lifted(troll: Any, api_key: Key) -> None:
    shown = []
    for hours in (["12.5"], []):
        assert troll("admin", "budget", "acme", *hours).exit_code == 0
        [account] = json.loads(troll("admin", "organizations", "--json").stdout)
        shown.append(account["gpu_hours_a_month"])
    assert shown == [12.5, None]


def test_organisations_are_made_operators_and_no_longer(troll: Any, api_key: Key) -> None:
    names = []
    for verb in ("add", "add", "remove"):
        assert troll("admin", "operators", verb, "acme").exit_code == 0
        names.append([each["name"] for each in json.loads(troll("admin", "operators", "list", "--json").stdout)])
    assert names == [["acme"], ["acme"], []]
    assert troll("admin", "operators", "add", "nobody").exit_code == 1
