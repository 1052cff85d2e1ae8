"""Rows of reasoning-gym."""

import json
from pathlib import Path

import pytest
import yaml

from examples.tasks import procedural
from service.graders.schemas import parse_grader
from service.jobs.check import check

pytest.importorskip("reasoning_gym", reason="the extra 'procedural' is not installed")


@pytest.mark.parametrize(("generator", "kind"), [("leg_counting", "string_check"), ("countdown", "python")])
def test_a_generator_becomes_rows_and_a_job(generator: str, kind: str, tmp_path: Path) -> None:
    procedural.write(generator, tmp_path, "base", seed=1)
    grader = yaml.safe_load((tmp_path / "job.yaml").read_text())["method"]["reinforcement"]["grader"]
    assert grader["type"] == kind
    parsed = parse_grader(grader, "grader")
    found = check(tmp_path / "train.jsonl", tmp_path / "valid.jsonl", parsed, method="reinforcement")
    assert found.errors == []


def test_the_graders_code_judges_by_the_generator() -> None:
    row, other = procedural.rows("countdown", 2, seed=1)
    place: dict[str, object] = {}
    exec(procedural.SOURCE, place)
    grade = place["grade"]
    item = json.loads(json.dumps(row))
    assert grade({"output_text": row["answer"]}, item) == 1  # type: ignore[operator]
    assert grade({"output_text": other["answer"]}, item) < 1  # type: ignore[operator]


def test_rows_are_different_questions() -> None:
    made = procedural.rows("leg_counting", 50, seed=1)
    assert len({row["messages"][0]["content"] for row in made}) == 50
