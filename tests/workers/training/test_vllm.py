"""Whole runs that sample with vLLM: weights reach it after every step, and the demo's model learns."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.cli import demo as client
from service.graders.schemas import parse_grader
from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from service.jobs.methods.reinforcement import Reinforcement
from service.jobs.spec import JobSpec, RunSpec
from workers import wire
from workers.wire import ExitCode


@pytest.fixture(scope="module")
def additions(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Path:
    """The demo's base model and its rows."""
    folder = tmp_path_factory.mktemp("additions")
    (folder / "base").symlink_to(demo_model)
    client.write_rows(folder)
    return folder


def run(additions: Path, output: Path, **asked: Any) -> tuple[int, list[wire.Line]]:
    """The exit code and the lines of a training child."""
    hyperparameters = Hyperparameters(**(client.HYPERPARAMETERS | {"rollout_engine": "vllm"} | asked))
    spec = RunSpec(
        job_id="ftjob-vllm",
        attempt=1,
        job=JobSpec(
            model="demo",
            training_file="file-1",
            validation_file="file-2",
            method=Reinforcement(
                grader=parse_grader(client.GRADER, "grader"),
                hyperparameters=resolve(hyperparameters, training_rows=1000),
            ),
            seed=1,
        ),
        model_path=additions / "base",
        training_path=additions / "additions.jsonl",
        validation_path=additions / "held-out.jsonl",
        checkpoints=[],
        output_dir=output / "out",
    )
    path = output / "run.json"
    path.write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "workers.training", "--run", str(path)]
    child = subprocess.run(command, capture_output=True, timeout=280, check=False)
    assert child.returncode in (ExitCode.DONE, ExitCode.USER_ERROR), child.stderr.decode()[-3000:]
    return child.returncode, [wire.parse(line) for line in child.stdout.splitlines() if line.startswith(b"{")]


def metrics(lines: list[wire.Line]) -> dict[int, dict[str, Any]]:
    """The data of each step's metrics event."""
    events = [line for line in lines if isinstance(line, wire.Event) and line.type == "metrics"]
    return {event.data["step"]: event.data for event in events if event.data}


@pytest.mark.e2e
def test_the_demos_model_learns_from_answers_of_vllm(additions: Path, tmp_path: Path) -> None:
    code, lines = run(additions, tmp_path, n_steps=40, eval_interval=40)
    assert code == ExitCode.DONE
    told = metrics(lines)
    assert told[40]["full_valid_mean_reward"] > told[0]["full_valid_mean_reward"] + 0.2
    assert max(told[step]["troll"]["mismatch_abs_max"] for step in range(1, 41)) < 1e-3


@pytest.mark.e2e
def test_answers_of_vllm_go_on_with_newer_weights(additions: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"old_policy": "sampler", "max_staleness": 3, "max_completion_tokens": 6}
    code, lines = run(additions, tmp_path, n_steps=5, eval_interval=5, **asked)
    assert code == ExitCode.DONE
    told = metrics(lines)
    assert [told[step]["troll"]["staleness_max"] for step in range(1, 6)] == [0, 1, 2, 3, 3]
    assert told[5]["troll"]["partial_rollout_fraction"] > 0.5


@pytest.mark.e2e
def test_the_samplers_distributions_can_be_the_old_policy_and_it_can_sample_ahead(
    additions: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"mini_batches": 1, "old_policy": "sampler", "max_staleness": 1}
    code, lines = run(additions, tmp_path, n_steps=3, eval_interval=2, **asked)
    assert code == ExitCode.DONE
    assert [metrics(lines)[step]["troll"]["staleness_max"] for step in (1, 2, 3)] == [0, 1, 1]
    # One update per step: the trainer's policy is still the one that sampled.
    first = metrics(lines)[1]["troll"]
    assert first["ratio"] == pytest.approx(1.0, abs=1e-3), json.dumps(first)
    assert first["kl_before"] == pytest.approx(0.0, abs=1e-4)
