"""Alpha graders through the official client; a real Celery worker grades."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from celery.contrib.testing.worker import start_worker

from service.core import ask
from service.core.broker import CONTROL_QUEUE
from service.graders.configured import grader_settings
from tests import factories
from tests.conftest import Key
from tests.contract.conftest import Official
from tests.workers.graders.jails import first_tier
from workers.control import trial
from workers.control.trial import run as run_grader

CLOSE = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "fuzzy_match",
}
BOTH = {
    "type": "multi",
    "name": "both",
    "graders": {"exact": factories.GRADER, "close": CLOSE},
    "calculate_output": "0.5 * exact + 0.5 * close",
}


@pytest.fixture
def control_worker(database: object) -> Iterator[None]:
    """A Celery worker in a thread that takes what the control queue holds."""
    from workers.app import app
    from workers.tasks import run_grader

    assert run_grader.name in app.tasks
    with start_worker(app, queues=[CONTROL_QUEUE], pool="threads", concurrency=2, perform_ping_check=False):
        yield


def run(official: Official, grader: Any, sample: str, item: Any) -> Any:
    graders = official.client.fine_tuning.alpha.graders
    return official.ask(graders.run(grader=grader, model_sample=sample, item=item))


@pytest.mark.parametrize("grader", [factories.GRADER, CLOSE], ids=["string_check", "text_similarity"])
def test_a_valid_grader_comes_back(official: Official, grader: dict[str, Any]) -> None:
    answer = official.ask(official.client.fine_tuning.alpha.graders.validate(grader=grader))
    assert answer.grader.to_dict() | grader == answer.grader.to_dict()


def test_an_invalid_grader_names_its_field(official: Official) -> None:
    bad = {**BOTH, "graders": {"exact": {**factories.GRADER, "operation": "near"}, "close": CLOSE}}
    with pytest.raises(openai.BadRequestError) as refusal:
        official.ask(official.client.fine_tuning.alpha.graders.validate(grader=bad))
    assert (refusal.value.code, refusal.value.param) == ("invalid_grader", "grader.graders.exact.operation")


def test_code_is_refused_where_no_jail_is_set(official: Official) -> None:
    grader_settings.cache_clear()
    python = {"type": "python", "name": "p", "source": "def grade(sample, item): return 1.0"}
    with pytest.raises(openai.BadRequestError) as refusal:
        run(official, python, "x", {})
    assert refusal.value.param == "grader.type"


@pytest.fixture
def code_allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TROLL_GRADERS", json.dumps({"jail": first_tier()}))
    grader_settings.cache_clear()
    yield
    monkeypatch.undo()
    grader_settings.cache_clear()


def python(beginning: str) -> Any:
    source = f"{beginning}\ndef grade(sample, item):\n    return 1.0\n"
    return {"type": "python", "name": "p", "source": source}


def test_a_grader_whose_imports_are_there_is_valid(
    official: Official, control_worker: None, code_allowed: None
) -> None:
    grader = python("import numpy, rapidfuzz, scipy")
    answer = official.ask(official.client.fine_tuning.alpha.graders.validate(grader=grader))
    assert answer.grader.source == grader["source"]


def test_a_grader_whose_imports_are_missing_is_not_valid(
    connect: Any, api_key: Key, control_worker: None, code_allowed: None
) -> None:
    graders = connect(api_key).fine_tuning.alpha.graders
    multi = {"type": "multi", "name": "m", "graders": {"code": python("import nowhere")}, "calculate_output": "code"}
    for grader, field in ((python("import nowhere"), "grader.source"), (multi, "grader.graders.code.source")):
        with pytest.raises(openai.BadRequestError) as refusal:
            graders.validate(grader=grader)
        assert (refusal.value.code, refusal.value.param) == ("invalid_grader", field)
        assert "No module named 'nowhere'" in refusal.value.message


def test_where_no_jail_holds_a_grader_is_neither_valid_nor_not(
    connect: Any,
    api_key: Key,
    control_worker: None,
    code_allowed: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TROLL_GRADERS", json.dumps({"jail": "unshare", "jail_cgroup": str(tmp_path / "none")}))
    grader_settings.cache_clear()
    with pytest.raises(openai.InternalServerError) as failure:
        connect(api_key, max_retries=0).fine_tuning.alpha.graders.validate(grader=python(""))
    assert (failure.value.status_code, failure.value.code) == (503, "jail_unavailable")


def test_a_run_gives_the_reward(official: Official, control_worker: None) -> None:
    answer = run(official, factories.GRADER, "21", {"answer": "21"})
    assert (answer.reward, answer.sub_rewards, answer.metadata.name) == (1.0, {}, "exact")
    assert (answer.metadata.type, answer.metadata.token_usage) == ("string_check", None)
    assert answer.metadata.execution_time >= 0
    errors = answer.metadata.errors.to_dict()
    assert not any(errors.values())


def test_a_run_of_a_multi_grader_tells_its_parts(official: Official, control_worker: None) -> None:
    answer = run(official, BOTH, "22", {"answer": "21"})
    assert answer.sub_rewards == {"exact": 0.0, "close": 0.5}
    assert answer.reward == 0.25


def test_a_missing_field_is_a_flag_and_no_failure(official: Official, control_worker: None) -> None:
    answer = run(official, factories.GRADER, "21", {})
    assert answer.reward == 0.0
    assert answer.metadata.errors.invalid_variable_error
    assert not answer.metadata.errors.other_error
    assert "item.answer" in answer.metadata.errors.details


def test_an_answer_that_is_no_json_is_a_flag(official: Official, control_worker: None) -> None:
    grader = {**factories.GRADER, "input": "{{sample.output_json.x}}"}
    assert run(official, grader, "not json", {"answer": "1"}).metadata.errors.sample_parse_error


def test_without_a_worker_there_is_an_error_in_time(
    connect: Any, api_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "ACCEPT_SECONDS", 0.2)
    client = connect(api_key, max_retries=0)
    with pytest.raises(openai.InternalServerError) as failure:
        client.fine_tuning.alpha.graders.run(grader=cast(Any, factories.GRADER), model_sample="x", item={"answer": "x"})
    assert (failure.value.status_code, failure.value.code) == (503, "no_worker")


def test_a_grader_that_crashes_is_an_error_at_once(
    connect: Any, api_key: Any, control_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(trial, "run", crash)
    client = connect(api_key, max_retries=0)
    with pytest.raises(openai.InternalServerError) as failure:
        client.fine_tuning.alpha.graders.run(grader=cast(Any, factories.GRADER), model_sample="x", item={"answer": "x"})
    assert failure.value.code == "worker_failed"


class Held:
    """Grader runs that end when they are let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)

    def run(self, definition: Any, sample: str, item: Any) -> Any:
        if sample == "slow":
            self.begun.release()
            assert self.go.wait(30)
        return run_grader(definition, sample, item)


@pytest.fixture
def held(control_worker: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    runs = Held()
    monkeypatch.setattr(trial, "run", runs.run)
    yield runs
    runs.go.set()


def test_slow_runs_of_one_organisation_leave_anothers_alone(
    connect: Any, api_key: Key, new_key: Any, held: Held
) -> None:
    mine, others = connect(api_key), connect(new_key(organization="globex"))
    with ThreadPoolExecutor(6) as pool:
        slow = [pool.submit(grade, mine, "slow") for _ in range(6)]
        for _ in range(trial.AT_ONCE_EACH):
            assert held.begun.acquire(timeout=30)
        assert grade(others, "21") == 1.0
        assert not any(each.done() for each in slow)
        held.go.set()
        assert [each.result(30) for each in slow] == [0.0] * 6


def test_too_many_slow_runs_of_one_organisation_are_refused_at_once(connect: Any, api_key: Key, held: Held) -> None:
    client, many = connect(api_key, max_retries=0), trial.AT_ONCE_EACH + trial.WAITING_EACH
    with ThreadPoolExecutor(many) as pool:
        slow = [pool.submit(grade, client, "slow") for _ in range(many)]
        while not trial.threads.is_full(api_key.organization_id):
            assert not any(each.done() for each in slow)
            time.sleep(0.02)
        with pytest.raises(openai.RateLimitError) as refusal:
            grade(client, "slow")
        assert (refusal.value.code, refusal.value.response.headers["retry-after"]) == ("worker_busy", "2")
        held.go.set()


def grade(client: openai.OpenAI, sample: str) -> float:
    graders = client.fine_tuning.alpha.graders
    return graders.run(grader=cast(Any, factories.GRADER), model_sample=sample, item={"answer": "21"}).reward
