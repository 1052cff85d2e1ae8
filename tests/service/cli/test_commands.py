"""The client's and the operator's commands against the real API."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import OpenAI
from typer.testing import CliRunner, Result

from service.cli import app, files, jobs
from service.core.db import transaction
from service.jobs import repository
from service.settings import settings
from tests import factories

Troll = Callable[..., Result]


@pytest.fixture
def model(models_dir: Path) -> str:
    return factories.offer_model(models_dir, "tiny/cli")


@pytest.fixture
def job_file(tmp_path: Path, model: str) -> Path:
    """A job as a person would write it: a YAML file beside its data."""
    (tmp_path / "train.jsonl").write_bytes(factories.jsonl(factories.rows(8)))
    (tmp_path / "valid.jsonl").write_bytes(factories.jsonl(factories.rows(4, start=50)))
    body = {
        "model": model,
        "training_file": "train.jsonl",
        "validation_file": "valid.jsonl",
        "method": {"type": "reinforcement", "reinforcement": {"grader": factories.GRADER, "hyperparameters": {}}},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    return path


@pytest.fixture
def job_id(troll: Troll, job_file: Path) -> str:
    return troll("submit", job_file).stdout.strip()


def test_submit_uploads_creates_and_prints_the_id(troll: Troll, job_file: Path) -> None:
    result = troll("submit", job_file)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"ftjob-\w+\n", result.stdout)
    [job] = json.loads(troll("jobs", "list", "--json").stdout)
    assert job["id"] == result.stdout.strip()


def test_submit_takes_files_that_are_already_there_by_their_id(
    troll: Troll, job_file: Path, base_url: str, api_key: Any
) -> None:
    client = OpenAI(base_url=base_url, api_key=api_key.plain)
    uploaded = client.files.create(file=job_file.parent / "train.jsonl", purpose="fine-tune").id
    job_file.write_text(job_file.read_text().replace("train.jsonl", uploaded))
    result = troll("submit", job_file)
    assert result.exit_code == 0, result.output
    assert client.fine_tuning.jobs.retrieve(result.stdout.strip()).training_file == uploaded


def test_files_of_validation_sets_are_uploaded_and_large_ones_in_parts(
    troll: Troll, job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGE_BYTES", 10)
    rows = factories.jsonl(factories.rows(3, start=90))
    (job_file.parent / "held-out.jsonl").write_bytes(rows)
    body = yaml.safe_load(job_file.read_text())
    for file, code in (("held-out.jsonl", 0), ("missing.jsonl", 1)):
        body["method"]["reinforcement"]["validation_sets"] = [{"name": "held-out", "file": file}]
        job_file.write_text(yaml.safe_dump(body))
        result = troll("submit", job_file)
        assert result.exit_code == code, result.output
    assert "validation_sets[0].file': there is no file" in result.stderr
    shown = json.loads(troll("jobs", "list", "--json").stdout)
    (used,) = shown[0]["method"]["reinforcement"]["validation_sets"]
    assert (used["name"], used["rows"]) == ("held-out", 3)


def test_a_refused_job_points_to_the_line_and_leaves_no_files(
    troll: Troll, job_file: Path, base_url: str, api_key: Any
) -> None:
    job_file.write_text(job_file.read_text().replace("hyperparameters: {}", "hyperparameters:\n      kl_bound: -1"))
    line = next(n for n, text in enumerate(job_file.read_text().splitlines(), 1) if "kl_bound" in text)
    result = troll("submit", job_file)
    assert result.exit_code == 1
    assert f"job.yaml:{line}: " in result.stderr
    assert "greater than 0" in result.stderr
    assert OpenAI(base_url=base_url, api_key=api_key.plain).files.list().data == []


def test_bad_rows_are_told_with_the_key_that_names_the_file(troll: Troll, job_file: Path) -> None:
    (job_file.parent / "valid.jsonl").write_text("not json\n")
    result = troll("submit", job_file)
    assert result.exit_code == 1
    line = next(n for n, text in enumerate(job_file.read_text().splitlines(), 1) if "validation_file" in text)
    assert f"job.yaml:{line}: " in result.stderr
    assert "line 1" in result.stderr


def test_a_local_file_that_is_not_there_is_told_before_anything_is_uploaded(troll: Troll, job_file: Path) -> None:
    (job_file.parent / "valid.jsonl").unlink()
    result = troll("submit", job_file)
    assert result.exit_code == 1
    assert "there is no file" in result.stderr


def test_jobs_are_listed_and_shown(troll: Troll, job_id: str, model: str) -> None:
    assert job_id in troll("jobs", "list").stdout
    shown = troll("jobs", "show", job_id).stdout
    assert model in shown
    assert "kl_bound=0.05" in shown
    assert "Created fine-tuning job" in shown
    assert json.loads(troll("jobs", "show", job_id, "--json").stdout)["id"] == job_id


def test_a_supervised_job_is_shown_without_a_grader(troll: Troll, tmp_path: Path, model: str) -> None:
    (tmp_path / "answered.jsonl").write_bytes(factories.jsonl(factories.answered_rows(8)))
    file = tmp_path / "supervised.yaml"
    file.write_text(f"model: {model}\ntraining_file: answered.jsonl\n")
    shown = troll("jobs", "show", troll("submit", str(file)).stdout.strip()).stdout
    assert "schedule=linear" in shown
    assert "supervised" in shown
    assert "grader" not in shown


def test_an_unknown_job_is_one_clear_line(troll: Troll) -> None:
    result = troll("jobs", "show", "ftjob-none")
    assert result.exit_code == 1
    assert result.stderr == "Error: No such fine-tuning job: 'ftjob-none'. (HTTP 404)\n"


def test_a_cancelled_job_can_be_followed_to_its_end_and_is_no_success(troll: Troll, job_id: str) -> None:
    assert troll("jobs", "cancel", job_id).stdout == f"{job_id}: cancelled\n"
    result = troll("follow", job_id)
    assert result.exit_code == 4
    assert f"Created fine-tuning job: {job_id}" in result.stderr
    assert f"{job_id} cancelled" in result.stderr


def test_a_job_is_paused_and_goes_on(troll: Troll, job_id: str) -> None:
    assert troll("jobs", "pause", job_id).stdout == f"{job_id}: paused\n"
    assert troll("jobs", "resume", job_id).stdout == f"{job_id}: queued\n"
    again = troll("jobs", "resume", job_id)
    assert again.exit_code == 1
    assert "is queued and cannot be resumed" in again.stderr


@pytest.mark.parametrize(
    ("verb", "says"),
    [("cancel", "will be cancelled at its next step"), ("pause", "will be paused with a checkpoint of its next step")],
)
def test_of_a_running_job_is_told_what_it_will_be(troll: Troll, job_id: str, verb: str, says: str) -> None:
    with transaction("troll_worker") as session:
        assert repository.claim(session, worker="w", lease=timedelta(minutes=5), max_running=8)
    assert troll("jobs", verb, job_id).stdout == f"{job_id}: {says}\n"


def test_all_jobs_are_listed_page_by_page(troll: Troll, job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PAGE", 2)
    made = [troll("submit", job_file).stdout.strip() for _ in range(5)]
    assert [job["id"] for job in json.loads(troll("jobs", "list", "--all", "--json").stdout)] == made[::-1]
    assert len(json.loads(troll("jobs", "list", "--limit", "2", "--json").stdout)) == 2


def test_integrations_are_submitted_and_shown(troll: Troll, job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = {"project": "additions", "tags": ["night"]}
    body = yaml.safe_load(job_file.read_text()) | {"integrations": [{"type": "wandb", "wandb": wandb}]}
    job_file.write_text(yaml.safe_dump(body, sort_keys=False))
    refused = troll("submit", job_file)
    assert refused.exit_code == 1
    line = job_file.read_text().splitlines().index("integrations:") + 1
    assert f"job.yaml:{line}: Weights & Biases is turned off on this server" in refused.stderr
    monkeypatch.setenv("TROLL_WANDB_MODE", "offline")
    settings.cache_clear()
    try:
        job_id = troll("submit", job_file).stdout.strip()
        assert f"wandb additions/{job_id}" in troll("jobs", "show", job_id).stdout
    finally:
        settings.cache_clear()


def test_ctrl_c_leaves_a_followed_job_alone(troll: Troll, job_id: str) -> None:
    command = [sys.executable, "-m", "service.cli", "follow", job_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert job_id in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=30)
    assert run.returncode == 130
    assert f"troll follow {job_id}" in said
    assert json.loads(troll("jobs", "show", job_id, "--json").stdout)["status"] == "queued"


def test_a_model_is_pulled_whole_into_a_new_folder(troll: Troll, model: str, models_dir: Path, tmp_path: Path) -> None:
    assert model in troll("models", "list").stdout
    result = troll("pull", model, "-o", tmp_path / "weights")
    assert result.exit_code == 0, result.output
    pulled = {path.name: path.read_bytes() for path in (tmp_path / "weights").iterdir()}
    assert pulled == {path.name: path.read_bytes() for path in (models_dir / model).iterdir()}


def test_an_existing_folder_is_never_pulled_into(troll: Troll, model: str, tmp_path: Path) -> None:
    result = troll("pull", model, "-o", tmp_path)
    assert result.exit_code == 1
    assert "exists already" in result.stderr


def test_an_unknown_model_leaves_nothing_behind(troll: Troll, tmp_path: Path) -> None:
    result = troll("pull", "no/such", "-o", tmp_path / "weights")
    assert result.exit_code == 1
    assert "no/such" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_keys_are_made_listed_and_revoked(troll: Troll, base_url: str) -> None:
    made = json.loads(troll("keys", "create", "--organization", "globex", "--name", "laptop", "--json").stdout)
    assert OpenAI(base_url=base_url, api_key=made["key"]).models.list() is not None
    listed = {key["id"]: key for key in json.loads(troll("keys", "list", "--json").stdout)}
    assert listed[made["id"]]["state"] == "valid"
    assert made["key"] not in json.dumps(listed)
    assert "is revoked since" in troll("keys", "revoke", made["id"]).stdout
    listed = {key["id"]: key for key in json.loads(troll("keys", "list", "--json").stdout)}
    assert listed[made["id"]]["state"] == "revoked"
    assert troll("keys", "revoke", made["id"]).exit_code == 1


def test_a_key_is_the_only_line_on_stdout(troll: Troll) -> None:
    assert re.fullmatch(r"sk-troll-\w+\n", troll("keys", "create", "--organization", "globex").stdout)


def test_a_wrong_key_is_told_and_not_shown(troll: Troll, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-troll-wrong")
    result = troll("jobs", "list")
    assert result.exit_code == 1
    assert "Incorrect API key" in result.stderr
    assert "sk-troll-wrong" not in result.stderr


def test_without_a_service_the_commands_say_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("TROLL_DATA_DIR", str(tmp_path))
    result = CliRunner().invoke(app, ["jobs", "list"])
    assert result.exit_code == 1
    assert "No stack is up" in result.stderr


def test_an_unreachable_service_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-troll-any")
    result = CliRunner().invoke(app, ["jobs", "list"])
    assert result.exit_code == 1
    assert "Cannot reach http://127.0.0.1:9/v1" in result.stderr
