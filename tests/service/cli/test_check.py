"""``troll check``: the service's own checks, offline."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.graders.configured import grader_settings
from tests import factories
from tests.workers.graders.jails import first_tier


@pytest.fixture
def training(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(factories.jsonl(factories.rows(4)))
    return path


def grader(tmp_path: Path, reference: str) -> Path:
    path = tmp_path / "grader.json"
    path.write_text(json.dumps(factories.GRADER | {"reference": reference}))
    return path


def test_good_files_pass(training: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(training), "--grader", str(grader(tmp_path, "{{item.answer}}"))])
    assert result.exit_code == 0, result.output


def test_the_method_is_what_the_first_row_looks_like_unless_it_is_given(training: Path) -> None:
    answered = [{"messages": [*row["messages"], {"role": "assistant", "content": "1"}]} for row in factories.rows(2)]
    training.write_bytes(factories.jsonl(answered))
    result = CliRunner().invoke(app, ["check", str(training)])
    assert (result.exit_code, "supervised" in result.output) == (0, True), result.output
    result = CliRunner().invoke(app, ["check", str(training), "--method", "reinforcement"])
    assert (result.exit_code, "must have the role user" in result.output) == (1, True), result.output


def test_a_grader_is_not_for_supervised_jobs(training: Path, tmp_path: Path) -> None:
    given = ["--grader", str(grader(tmp_path, "{{item.answer}}")), "--method", "supervised"]
    result = CliRunner().invoke(app, ["check", str(training), *given])
    assert (result.exit_code, "no grader" in result.output) == (1, True)


def test_every_bad_line_is_named(training: Path) -> None:
    training.write_text(training.read_text() + "{\n[]\n")
    result = CliRunner().invoke(app, ["check", str(training)])
    assert result.exit_code == 1
    assert "line 5" in result.output
    assert "line 6" in result.output


def test_fields_that_the_grader_misses_are_named(training: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(training), "--grader", str(grader(tmp_path, "{{item.solution}}"))])
    assert result.exit_code == 1
    assert "item.solution" in result.output


def test_a_grader_that_is_none_is_explained(training: Path, tmp_path: Path) -> None:
    path = tmp_path / "grader.yaml"
    path.write_text("type: cosine\n")
    result = CliRunner().invoke(app, ["check", str(training), "--grader", str(path)])
    assert result.exit_code == 1
    assert "cosine" in result.output


def test_code_is_tried_in_a_jail_offline(training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_tier()
    monkeypatch.delenv("TROLL_GRADERS", raising=False)
    grader_settings.cache_clear()
    definition = tmp_path / "grader.json"
    source = "import nowhere\ndef grade(sample, item):\n    return 1.0\n"
    definition.write_text(json.dumps({"type": "python", "name": "p", "source": source}))
    result = CliRunner().invoke(app, ["check", str(training), "--grader", str(definition)])
    assert (result.exit_code, "No module named 'nowhere'" in result.output) == (1, True)


def test_a_grader_that_never_works_is_found_offline(tmp_path: Path) -> None:
    grader = {**factories.GRADER, "name": "exact"}
    broken = {"type": "multi", "name": "m", "graders": {"exact": grader}, "calculate_output": "exact / 0"}
    rows, definition = tmp_path / "rows.jsonl", tmp_path / "grader.json"
    rows.write_bytes(factories.jsonl(factories.rows(3)))
    definition.write_text(json.dumps(broken))
    result = CliRunner().invoke(app, ["check", str(rows), "--grader", str(definition)])
    assert result.exit_code == 1
    assert "formula_parse_error" in result.stderr
