"""The published runs as jobs: which there are, and that the service takes every one as it is written."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from examples.paper import __main__ as command
from examples.paper import runs
from service.cli import submission
from service.graders.configured import grader_settings
from tests import factories

TABLE = runs.read_table()
JOBS = runs.training_jobs(TABLE)
README = runs.TABLE.with_name("README.md").read_text()


def settings_of(name: str) -> dict[str, Any]:
    hyperparameters: dict[str, Any] = JOBS[name]["method"]["reinforcement"]["hyperparameters"]
    return hyperparameters


def test_every_published_combination_is_there_once() -> None:
    per_data = Counter(
        job["training_file"].removeprefix("../data/").removesuffix("-train.jsonl") for job in JOBS.values()
    )
    # 8 with each of two models; 4 small models, 6 medium ones, the 14B; 4 ablations.
    assert per_data["dapo"] == 2 * 8 + 2 * (4 + 6 + 1) + 4
    assert per_data["gsm8k"] == 2 * (2 + 4 + 6 + 4)
    assert per_data["eurus-math"] == 2 * 2
    assert per_data["eurus-code"] == 2 * 5
    assert len(JOBS) == sum(per_data.values())


@pytest.mark.parametrize("name", [name for name in JOBS if name.endswith("-troll")])
def test_every_run_of_troll_has_its_twin_of_clip_that_differs_in_the_objective_alone(name: str) -> None:
    one, other = settings_of(name), settings_of(name.removesuffix("troll") + "clip")
    differing = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    troll, clip = TABLE["objectives"]["troll"], TABLE["objectives"]["clip"]
    assert differing == troll.keys() | clip.keys()
    assert one["objective"] == "troll"


def test_an_ablation_changes_what_its_name_says() -> None:
    plain = settings_of("dapo-qwen3-1.7b-grpo-troll")
    changed = {
        "bound-0.01": {"kl_bound": 0.01},
        "bound-0.25": {"kl_bound": 0.25},
        "kept-256": {"max_tokens_kept": 256, "dropped_mass": 1e-6},
        "kept-16": {"max_tokens_kept": 16, "dropped_mass": 1e-4},
    }
    for name, change in changed.items():
        assert settings_of(f"dapo-qwen3-1.7b-grpo-troll-{name}") == plain | change


def cells(first: str) -> list[list[str]]:
    """The rows of the table of README.md whose first column is called so."""
    body = README.split(f"| {first} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]


def test_the_readme_tells_every_setting_that_runs_share() -> None:
    told: dict[str, Any] = {}
    for first, values, _ in cells("setting"):
        if re.sub(r"`\w+`|\([εαKδ]\)|[, ]", "", first) == "":
            told |= zip(re.findall(r"`(\w+)`", first), values.replace("`", "").split(", "), strict=False)
    ppo = TABLE["estimators"]["ppo"]["hyperparameters"]
    shared = TABLE["hyperparameters"] | TABLE["objectives"]["troll"] | TABLE["objectives"]["clip"] | ppo
    wanted = {name: value for name, value in shared.items() if name not in ("objective", "advantage", "aggregation")}
    found = {name: float(told[name]) if told[name][0].isdigit() else told[name] for name in wanted}
    assert found == wanted


def test_the_readme_counts_the_runs_of_every_configuration() -> None:
    assert sum(int(number) for number, *_ in cells("runs")) == len(JOBS)
    named = {number for *_, configuration in cells("runs") for number in re.findall(r"`(\d+)_", configuration)}
    assert named == {number for source in runs.sources(TABLE).values() for number in source.split(", ")}


def test_two_lines_that_make_the_same_run_are_refused() -> None:
    with pytest.raises(ValueError, match="the run dapo-qwen3-8b-grpo-troll"):
        runs.training_jobs(TABLE | {"runs": 2 * TABLE["runs"][:1]})


def test_the_command_writes_a_file_for_every_run_and_says_whose_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(["write", str(tmp_path)])
    assert {path.stem for path in (tmp_path / "jobs").iterdir()} == JOBS.keys()
    for name, job in JOBS.items():
        assert submission.read(tmp_path / "jobs" / f"{name}.yaml").body == job
    command.main(["list"])
    told = capsys.readouterr().out.splitlines()
    assert "dapo-qwen3-1.7b-grpo-troll-kept-16" in told[-1]
    assert told[-1].split()[1:] == ["Qwen/Qwen3-1.7B", "130"]


@pytest.fixture
def jail_allowed(servers: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graders may run code, as far as the API is concerned."""
    monkeypatch.setenv("TROLL_GRADERS", '{"jail": "unshare"}')
    grader_settings.cache_clear()
    yield
    grader_settings.cache_clear()


@pytest.fixture
def uploaded(client: TestClient) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """``uploaded(job)`` is the body with ids of uploaded files in the place of its paths."""
    rows = [row | {"tests": [{"stdin": "", "stdout": "1"}]} for row in factories.rows(300)]
    id = factories.upload(client, factories.jsonl(rows))

    def with_ids(job: dict[str, Any]) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(json.dumps(job))
        for key in ("training_file", "validation_file"):
            body |= {key: id} if key in body else {}
        for each in body["method"][body["method"]["type"]].get("validation_sets", []):
            each["file"] = id
        return body

    return with_ids


@pytest.mark.usefixtures("jail_allowed")
def test_the_service_takes_every_run_and_changes_nothing_of_it(
    client: TestClient, models_dir: Path, uploaded: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    for job in JOBS.values():
        factories.offer_model(models_dir, job["model"])
        body = uploaded(job)
        answer = client.post("/v1/fine_tuning/jobs", json=body)
        assert answer.status_code == 200, answer.text
        shown, asked = answer.json()["method"]["reinforcement"], body["method"]["reinforcement"]
        assert asked["hyperparameters"].items() <= shown["hyperparameters"].items()
        assert asked["grader"].items() <= shown["grader"].items()
        given = [
            tuple(each[key] for key in ("name", "samples_per_row", "temperature"))
            for each in asked.get("validation_sets", [])
        ]
        assert [
            (each["name"], each["samples_per_row"], each["temperature"]) for each in shown["validation_sets"]
        ] == given
        # Waiting jobs are counted.
        assert client.post(f"/v1/fine_tuning/jobs/{answer.json()['id']}/cancel").status_code == 200


def test_a_model_is_measured_on_the_seven_sets_as_in_training(
    client: TestClient,
    models_dir: Path,
    uploaded: Callable[[dict[str, Any]], dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = factories.offer_model(models_dir, "Qwen/Qwen3-8B")
    command.main(["evaluation", model, str(tmp_path)])
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "jobs" / "evaluation-Qwen-Qwen3-8B.yaml"
    job = yaml.safe_load(path.read_text())
    answer = client.post("/v1/fine_tuning/jobs", json=uploaded(job))
    assert answer.status_code == 200, answer.text
    sets = answer.json()["method"]["evaluation"]["validation_sets"]
    assert [(each["name"], each["samples_per_row"], each["temperature"]) for each in sets] == [
        ("dapo", 1, 0.0),
        ("math500", 1, 0.0),
        ("amc", 32, 0.6),
        ("aime2024", 32, 0.6),
        ("aime2025", 32, 0.6),
        ("omni-math", 1, 0.0),
        ("olympiadbench", 1, 0.0),
        ("minerva", 1, 0.0),
    ]
    assert {each["max_completion_tokens"] for each in sets} == {4096}
