"""Fine-tuning jobs over HTTP, on real PostgreSQL and Redis."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.core import storage
from service.core.db import transaction
from service.jobs import repository
from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from service.settings import settings
from tests import factories


@pytest.fixture
def model(models_dir: Path) -> str:
    return factories.offer_model(models_dir)


@pytest.fixture
def body(client: TestClient, model: str) -> dict[str, Any]:
    return factories.job_body(client, model)


def refused(client: TestClient, body: dict[str, Any], param: str, *, status: int = 400) -> dict[str, Any]:
    """The error of a create request, after making sure that it created nothing."""
    answer = client.post("/v1/fine_tuning/jobs", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert error["type"]
    assert error["code"]
    assert client.get("/v1/fine_tuning/jobs").json()["data"] == []
    return error


def test_a_created_job_is_queued_with_every_auto_resolved(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post("/v1/fine_tuning/jobs", json=body).json()
    assert job["status"] == "queued"
    hyperparameters = job["method"]["reinforcement"]["hyperparameters"]
    assert "auto" not in [value for name, value in hyperparameters.items() if name != "reasoning_effort"]
    assert (hyperparameters["batch_size"], hyperparameters["n_steps"], hyperparameters["group_size"]) == (8, 1, 8)
    assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").json() == job


@pytest.mark.parametrize(
    ("asked", "used", "told"),
    [
        ({"n_epochs": 3, "n_steps": 1}, {"n_epochs": 1}, "n_epochs is 1 and not 3: n_steps decides"),
        ({"batch_size": 100}, {"batch_size": 8}, "batch_size is 8 and not 100: the training file has no more rows"),
        ({"mini_batches": 64}, {"mini_batches": 8}, "mini_batches is 8 and not 64: batch_size is no more"),
        (
            {"learning_rate": 5e-6, "learning_rate_multiplier": 2},
            {"learning_rate": 5e-6, "learning_rate_multiplier": 5},
            "learning_rate_multiplier is 5 and not 2: learning_rate decides",
        ),
        (
            {"group_size": 4, "compute_multiplier": 2},
            {"group_size": 4, "compute_multiplier": 0.5},
            "compute_multiplier is 0.5 and not 2: group_size decides",
        ),
    ],
)
def test_values_shown_are_values_used_and_a_change_is_told(
    client: TestClient, model: str, asked: dict[str, Any], used: dict[str, Any], told: str
) -> None:
    job = factories.create_job(client, model, **asked)
    shown = job["method"]["reinforcement"]["hyperparameters"]
    assert {name: shown[name] for name in used} == used
    events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    assert [event["message"] for event in events if event["level"] == "warn" and " is " in event["message"]][-1] == told


def test_what_is_used_as_it_was_asked_is_no_warning(client: TestClient, model: str) -> None:
    job = factories.create_job(client, model, n_epochs=2, batch_size=4, n_steps=4, mini_batches=4, group_size=4)
    events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    assert [event["message"] for event in events if "decides" in event["message"]] == []


def test_all_bad_hyperparameters_are_named_at_once(client: TestClient, body: dict[str, Any]) -> None:
    body["method"]["reinforcement"]["hyperparameters"] = {"kl_bound": -1, "n_epochs": 0, "beta": 1}
    message = refused(client, body, "method.reinforcement.hyperparameters.n_epochs")["message"]
    for name in ("kl_bound", "n_epochs", "beta"):
        assert f"'method.reinforcement.hyperparameters.{name}'" in message


def test_a_job_keeps_its_data_when_the_files_are_deleted(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post("/v1/fine_tuning/jobs", json=body).json()
    client.delete(f"/v1/files/{body['training_file']}")
    assert (storage.job_dir(job["id"]) / "training.jsonl").read_bytes() == factories.jsonl(factories.rows(8))


def test_the_events_of_a_new_job_are_newest_first(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post("/v1/fine_tuning/jobs", json=body).json()
    events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()
    assert [event["seq"] for event in events["data"]] == [2, 1]
    assert events["data"][1]["message"] == f"Created fine-tuning job: {job['id']}"


def test_unknown_model_is_refused_and_names_those_on_offer(
    client: TestClient, body: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.offer_model(tmp_path, "tiny/base")
    monkeypatch.setattr("service.models.base.settings", lambda: SimpleNamespace(models_dir=tmp_path))
    error = refused(client, {**body, "model": "gpt-4o"}, "model")
    assert error["code"] == "model_not_found"
    assert "tiny/base" in error["message"]


def test_another_organisations_file_looks_like_none(client_for: Any, new_key: Any, body: dict[str, Any]) -> None:
    stranger = client_for(new_key(organization="globex"))
    error = refused(stranger, body, "training_file")
    assert error["code"] == "file_not_found"


def test_validation_file_is_needed(client: TestClient, body: dict[str, Any]) -> None:
    refused(client, {**body, "validation_file": None}, "validation_file")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("kl_bound", 0, "greater than 0"),
        ("kl_bound", "wide", "number"),
        ("group_size", 0, "'auto'"),
        ("mini_batches", 65, "less than or equal to 64"),
        ("temperature", 3, "less than or equal to 2"),
        ("objective", "ppo", "it should be 'troll', 'clip', "),
        ("learning_rat", 1e-4, "Known ones:"),
    ],
)
def test_bad_hyperparameters_are_named(
    client: TestClient, body: dict[str, Any], name: str, value: Any, says: str
) -> None:
    body["method"]["reinforcement"]["hyperparameters"] = {name: value}
    error = refused(client, body, f"method.reinforcement.hyperparameters.{name}")
    assert says in error["message"]


def test_null_hyperparameters_mean_their_defaults(client: TestClient, body: dict[str, Any]) -> None:
    body["method"]["reinforcement"]["hyperparameters"] = {"kl_bound": None, "batch_size": None}
    job = client.post("/v1/fine_tuning/jobs", json=body).json()
    assert job["method"]["reinforcement"]["hyperparameters"]["kl_bound"] == 0.05


@pytest.mark.parametrize(
    ("asked", "resolved"),
    [
        ({"advantage": "gae"}, {"critic_learning_rate": 1e-5, "kl_estimator": "k3", "kl_coefficient": 0.0}),
        ({"lora_rank": 8}, {"critic_learning_rate": 1e-4}),
        ({"learning_rate": 2e-6, "kl_in": "reward"}, {"critic_learning_rate": 2e-5, "kl_estimator": "k1"}),
        ({"critic_learning_rate": 0.5, "kl_estimator": "k2"}, {"critic_learning_rate": 0.5, "kl_estimator": "k2"}),
    ],
)
def test_what_a_critic_and_a_reference_get_where_nothing_is_said(
    asked: dict[str, Any], resolved: dict[str, Any]
) -> None:
    found = resolve(Hyperparameters(**asked), training_rows=8)
    assert {name: getattr(found, name) for name in resolved} == resolved


@pytest.mark.parametrize("method", [{}, {"type": "dpo", "dpo": {}}, {"type": 1}])
def test_other_methods_are_refused(client: TestClient, body: dict[str, Any], method: Any) -> None:
    error = refused(client, {**body, "method": method}, "method.type")
    assert "method.type is 'supervised' or 'reinforcement'" in error["message"]


@pytest.fixture
def supervised(client: TestClient, model: str) -> dict[str, Any]:
    return factories.supervised_body(client, model, learning_rate=1e-4)


def test_a_supervised_job_is_queued_with_every_auto_resolved(client: TestClient, supervised: dict[str, Any]) -> None:
    job = client.post("/v1/fine_tuning/jobs", json=supervised).json()
    hyperparameters = job["method"]["supervised"]["hyperparameters"]
    assert (job["status"], job["method"]["type"], "reinforcement" in job["method"]) == ("queued", "supervised", False)
    assert "auto" not in hyperparameters.values()
    assert (hyperparameters["batch_size"], hyperparameters["n_epochs"], hyperparameters["n_steps"]) == (8, 3, 3)
    assert job["hyperparameters"] == {"batch_size": 8, "n_epochs": 3, "learning_rate_multiplier": 10.0}
    assert job["progress"]["total_steps"] == 3
    assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").json() == job


@pytest.mark.parametrize("method", [None, {"type": "supervised"}, {"type": "supervised", "supervised": None}])
def test_without_a_method_a_job_is_supervised_and_takes_the_older_hyperparameters(
    client: TestClient, supervised: dict[str, Any], method: Any
) -> None:
    older = {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": None}
    job = client.post("/v1/fine_tuning/jobs", json={**supervised, "method": method, "hyperparameters": older}).json()
    hyperparameters = job["method"]["supervised"]["hyperparameters"]
    assert (hyperparameters["n_epochs"], hyperparameters["n_steps"], hyperparameters["learning_rate"]) == (2, 2, 1e-5)


def test_the_methods_hyperparameters_win_over_the_older_ones(client: TestClient, supervised: dict[str, Any]) -> None:
    supervised["method"]["supervised"]["hyperparameters"] = {"n_epochs": 5, "batch_size": None}
    older = {"n_epochs": 2, "batch_size": 4}
    job = client.post("/v1/fine_tuning/jobs", json={**supervised, "hyperparameters": older}).json()
    hyperparameters = job["method"]["supervised"]["hyperparameters"]
    assert (hyperparameters["n_epochs"], hyperparameters["batch_size"]) == (5, 4)


def test_a_bad_older_hyperparameter_is_named_where_it_is(client: TestClient, supervised: dict[str, Any]) -> None:
    refused(client, {**supervised, "hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("schedule", "cosine", "'linear' or 'constant'"),
        ("n_epochs", 51, "less than or equal to 50"),
        ("beta", 0.1, "Known ones: batch_size"),
        ("group_size", 8, "Known ones: batch_size"),
    ],
)
def test_bad_supervised_hyperparameters_are_named(
    client: TestClient, supervised: dict[str, Any], name: str, value: Any, says: str
) -> None:
    supervised["method"]["supervised"]["hyperparameters"] = {name: value}
    error = refused(client, supervised, f"method.supervised.hyperparameters.{name}")
    assert says in error["message"]


def test_a_supervised_job_needs_no_validation_file(client: TestClient, supervised: dict[str, Any]) -> None:
    job = client.post("/v1/fine_tuning/jobs", json={**supervised, "validation_file": None}).json()
    assert (job["status"], job["validation_file"]) == ("queued", None)
    assert [path.name for path in storage.job_dir(job["id"]).iterdir()] == ["training.jsonl"]
    events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    assert events[0]["message"].startswith("Files validated: 8 training rows; job queued")


def test_rows_that_are_for_the_other_method_are_refused_with_their_lines(
    client: TestClient, supervised: dict[str, Any], body: dict[str, Any]
) -> None:
    error = refused(client, {**supervised, "training_file": body["training_file"]}, "training_file")
    assert "lines 1-8" in error["message"]
    refused(client, {**body, "training_file": supervised["training_file"]}, "training_file")


def test_a_grader_is_no_part_of_a_supervised_method(client: TestClient, supervised: dict[str, Any]) -> None:
    supervised["method"]["supervised"]["grader"] = factories.GRADER
    refused(client, supervised, "method.supervised.grader")


def test_what_a_method_holds_for_other_types_is_ignored(client: TestClient, supervised: dict[str, Any]) -> None:
    supervised["method"] |= {"reinforcement": None, "dpo": {"hyperparameters": {"beta": 1}}}
    assert client.post("/v1/fine_tuning/jobs", json=supervised).status_code == 200


def test_unsupported_graders_say_so(client: TestClient, body: dict[str, Any]) -> None:
    body["method"]["reinforcement"]["grader"] = {"type": "python", "name": "p", "source": "def grade(s, i): return 1"}
    error = refused(client, body, "method.reinforcement.grader.type")
    assert "turned off" in error["message"]


def test_a_template_field_that_rows_lack_is_refused_with_the_lines(client: TestClient, body: dict[str, Any]) -> None:
    body["method"]["reinforcement"]["grader"]["reference"] = "{{item.solution}}"
    error = refused(client, body, "training_file")
    assert "item.solution" in error["message"]
    assert "line" in error["message"]


def test_unknown_parameters_are_refused(client: TestClient, body: dict[str, Any]) -> None:
    refused(client, {**body, "modle": "x"}, "modle")


def test_jobs_are_listed_newest_first_and_page_by_page(client: TestClient, body: dict[str, Any]) -> None:
    ids = [client.post("/v1/fine_tuning/jobs", json=body).json()["id"] for _ in range(3)]
    first = client.get("/v1/fine_tuning/jobs", params={"limit": 2}).json()
    assert ([job["id"] for job in first["data"]], first["has_more"]) == (ids[:0:-1], True)
    rest = client.get("/v1/fine_tuning/jobs", params={"limit": 2, "after": first["last_id"]}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (ids[:1], False)


def test_jobs_are_filtered_by_metadata(client: TestClient, body: dict[str, Any]) -> None:
    plain = client.post("/v1/fine_tuning/jobs", json=body).json()["id"]
    tagged = client.post("/v1/fine_tuning/jobs", json={**body, "metadata": {"team": "a b"}}).json()["id"]
    found = client.get("/v1/fine_tuning/jobs", params={"metadata[team]": "a b"}).json()["data"]
    untagged = client.get("/v1/fine_tuning/jobs", params={"metadata": "null"}).json()["data"]
    assert ([job["id"] for job in found], [job["id"] for job in untagged]) == ([tagged], [plain])


def test_a_queued_job_is_cancelled_at_once(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post("/v1/fine_tuning/jobs", json=body).json()
    cancelled = client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").json()
    assert cancelled["status"] == "cancelled"
    assert cancelled["finished_at"]


def test_a_finished_job_cannot_be_cancelled(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post("/v1/fine_tuning/jobs", json=body).json()
    client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    again = client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (400, "invalid_job_state")


def test_a_queued_job_can_be_paused_and_resumed(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post("/v1/fine_tuning/jobs", json=body).json()
    assert client.post(f"/v1/fine_tuning/jobs/{job['id']}/pause").json()["status"] == "paused"
    assert client.post(f"/v1/fine_tuning/jobs/{job['id']}/resume").json()["status"] == "queued"


@pytest.mark.parametrize(("verb", "becomes"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_running_jobs_answer_has_the_status_that_it_will_have(
    client: TestClient, body: dict[str, Any], verb: str, becomes: str
) -> None:
    id = client.post("/v1/fine_tuning/jobs", json=body).json()["id"]
    with transaction("troll_worker") as session:
        assert repository.claim(session, worker="w", lease=timedelta(minutes=5), max_running=8)
    for _ in "12":
        assert client.post(f"/v1/fine_tuning/jobs/{id}/{verb}").json()["status"] == becomes
    now = client.get(f"/v1/fine_tuning/jobs/{id}").json()
    assert (now["status"], now["progress"]["desired"], now["finished_at"]) == ("running", verb, None)


def test_a_pause_that_is_withdrawn_leaves_a_job_running(client: TestClient, body: dict[str, Any]) -> None:
    id = client.post("/v1/fine_tuning/jobs", json=body).json()["id"]
    with transaction("troll_worker") as session:
        assert repository.claim(session, worker="w", lease=timedelta(minutes=5), max_running=8)
    client.post(f"/v1/fine_tuning/jobs/{id}/pause")
    assert client.post(f"/v1/fine_tuning/jobs/{id}/resume").json()["status"] == "running"


@pytest.mark.parametrize("path", ["", "/events", "/checkpoints"])
def test_another_organisations_job_looks_like_none(
    client: TestClient, client_for: Any, new_key: Any, body: dict[str, Any], path: str
) -> None:
    job = client.post("/v1/fine_tuning/jobs", json=body).json()
    answer = client_for(new_key(organization="globex")).get(f"/v1/fine_tuning/jobs/{job['id']}{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "fine-tuning_job_not_found")


def test_a_full_queue_is_a_429_that_is_not_retried(
    client: TestClient, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.settings import settings
    from service.usage import service as usage

    monkeypatch.setattr(usage, "settings", lambda: settings().model_copy(update={"max_queued_jobs": 0}))
    answer = client.post("/v1/fine_tuning/jobs", json=body)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")


@pytest.fixture
def operated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """``operated(4, 2)``: four processes train a model, and two of them share an engine."""

    def change(processes: int, tensor_parallel: int) -> None:
        monkeypatch.setenv("TROLL_PROCESSES_PER_JOB", str(processes))
        monkeypatch.setenv("TROLL_ROLLOUT_TENSOR_PARALLEL", str(tensor_parallel))
        settings.cache_clear()

    yield change
    monkeypatch.undo()
    settings.cache_clear()


@pytest.mark.parametrize(
    ("asked", "processes", "tensor_parallel", "name"),
    [
        ({"max_staleness": 1}, 2, 1, "max_staleness"),
        ({"max_staleness": 1, "rollout_engine": "vllm"}, 2, 2, "max_staleness"),
        ({"max_staleness": 1, "rollout_engine": "vllm"}, 4, 2, "max_staleness"),
        ({"temperature": 0.001, "rollout_engine": "vllm"}, 1, 1, "temperature"),
        ({"eval_temperature": 0.009, "rollout_engine": "vllm"}, 1, 1, "eval_temperature"),
        ({"objective": "dppo", "dppo_threshold": 1}, 1, 1, "dppo_threshold"),
        ({"objective": "gspo", "ratio": "token"}, 1, 1, "ratio"),
        ({"objective": "dppo", "ratio": "sequence"}, 1, 1, "ratio"),
        ({"max_completion_tokens": 10, "overlong_buffer": 11}, 1, 1, "overlong_buffer"),
        ({"group_size": 1}, 1, 1, "group_size"),
        ({"group_size": 1, "advantage": "reinforce_plus_plus"}, 1, 1, "group_size"),
        ({"advantage": "gae", "n_steps": 3, "critic_warmup_steps": 3}, 1, 1, "critic_warmup_steps"),
        ({"kl_coefficient": 0.1, "kl_in": "reward", "mask_truncated": True}, 1, 1, "kl_in"),
        ({"kl_coefficient": 0.1, "kl_estimator": "k1"}, 1, 1, "kl_estimator"),
    ],
)
def test_what_does_not_go_together_is_refused_when_the_job_is_created(
    client: TestClient,
    body: dict[str, Any],
    operated: Callable[[int, int], None],
    asked: dict[str, Any],
    processes: int,
    tensor_parallel: int,
    name: str,
) -> None:
    operated(processes, tensor_parallel)
    body["method"]["reinforcement"]["hyperparameters"] = asked
    refused(client, body, f"method.reinforcement.hyperparameters.{name}")
    assert client.get("/v1/fine_tuning/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("asked", "processes", "tensor_parallel"),
    [
        ({"max_staleness": 1}, 1, 1),
        ({"max_staleness": 1, "rollout_engine": "vllm"}, 4, 1),
        ({"max_staleness": 0, "rollout_engine": "vllm"}, 4, 2),
        ({"old_policy": "sampler", "rollout_engine": "vllm"}, 1, 1),
        ({"old_policy": "sampler", "max_staleness": 16, "mismatch_correction": "geometric-mask"}, 1, 1),
        ({"temperature": 0.001}, 1, 1),
        ({"objective": "dppo", "dppo_threshold": 0.99}, 1, 1),
        ({"objective": "gspo", "ratio": "sequence"}, 1, 1),
        ({"objective": "troll", "ratio": "sequence"}, 1, 1),
        ({"max_completion_tokens": 10, "overlong_buffer": 10}, 1, 1),
        ({"group_size": 1, "advantage": "gae", "n_steps": 3, "critic_warmup_steps": 2}, 1, 1),
        ({"kl_coefficient": 0.1, "kl_in": "reward", "mask_truncated": True, "advantage": "gae"}, 1, 1),
        ({"kl_coefficient": 0.1, "mask_truncated": True}, 1, 1),
        ({"kl_coefficient": 0.1, "kl_in": "reward", "kl_estimator": "k1"}, 1, 1),
        ({"objective": "dppo", "dppo_divergence": "kl", "dppo_threshold": 1}, 1, 1),
        ({"objective": "troll", "dppo_threshold": 1}, 1, 1),
        ({"temperature": 0.01, "eval_temperature": 0, "rollout_engine": "vllm"}, 1, 1),
    ],
)
def test_what_goes_together_is_taken(
    client: TestClient,
    body: dict[str, Any],
    operated: Callable[[int, int], None],
    asked: dict[str, Any],
    processes: int,
    tensor_parallel: int,
) -> None:
    operated(processes, tensor_parallel)
    body["method"]["reinforcement"]["hyperparameters"] = asked
    assert client.post("/v1/fine_tuning/jobs", json=body).status_code == 200
