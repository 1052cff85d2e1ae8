"""What is told about data before a job exists: row limits, repetitions, validation rows that are trained on."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.graders.schemas import parse_grader
from service.jobs.check import check
from service.settings import settings
from tests import factories


def file(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_bytes(factories.jsonl(rows))
    return path


def test_good_data_has_no_findings(tmp_path: Path) -> None:
    training, validation = file(tmp_path, "t", factories.rows(8)), file(tmp_path, "v", factories.rows(4, start=50))
    findings = check(training, validation, parse_grader(factories.GRADER, "grader"))
    assert (findings.errors, findings.warnings, findings.usable) == ([], [], True)


def test_bad_lines_are_errors_that_name_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, "mine.jsonl", [*factories.rows(1), {"messages": []}])
    (error,) = check(path).errors
    assert error.startswith("mine.jsonl: ")
    assert "line 2" in error


def test_a_field_that_the_grader_needs_is_an_error(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "1+1="}]}]
    (error,) = check(file(tmp_path, "t", rows), grader=parse_grader(factories.GRADER, "grader")).errors
    assert "item.answer" in error


def test_too_many_rows_are_an_error_for_each_file(tmp_path: Path) -> None:
    training, validation = file(tmp_path, "t", factories.rows(6)), file(tmp_path, "v", factories.rows(3, start=50))
    findings = check(training, validation, max_training_rows=5, max_validation_rows=2)
    assert [error[:2] for error in findings.errors] == ["t:", "v:"]


def test_repeated_rows_are_a_warning_whatever_the_order_of_their_keys(tmp_path: Path) -> None:
    rows = factories.rows(3)
    turned = dict(reversed(rows[0].items()))
    (warning,) = check(file(tmp_path, "t", [*rows, turned, rows[1]])).warnings
    assert "2 rows" in warning
    assert "lines 4, 5" in warning


def test_the_same_question_with_another_answer_is_no_repetition(tmp_path: Path) -> None:
    (row,) = factories.rows(1)
    assert check(file(tmp_path, "t", [row, {**row, "answer": "other"}])).warnings == []


def test_validation_rows_that_are_trained_on_are_a_warning(tmp_path: Path) -> None:
    training = file(tmp_path, "t", factories.rows(8))
    shared = {**factories.rows(1)[0], "answer": "spelled otherwise"}
    (warning,) = check(training, file(tmp_path, "v", [*factories.rows(2, start=50), shared])).warnings
    assert "1 of the 3 conversations" in warning
    assert "line 3" in warning


def test_many_lines_are_counted_and_not_all_named(tmp_path: Path) -> None:
    (warning,) = check(file(tmp_path, "t", factories.rows(1) * 9)).warnings
    assert "lines 2, 3, 4, 5, 6 and 3 more" in warning


@pytest.fixture
def body(client: TestClient, models_dir: Path) -> dict[str, Any]:
    return factories.job_body(client, factories.offer_model(models_dir))


def test_a_job_warns_of_overlap_in_its_events(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post("/v1/fine_tuning/jobs", json={**body, "validation_file": body["training_file"]}).json()
    newest = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"][0]
    assert newest["level"] == "warn"
    assert "8 of the 8 conversations" in newest["message"]


def test_a_job_with_too_many_rows_is_refused(
    client: TestClient, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROLL_MAX_VALIDATION_ROWS", "3")
    settings.cache_clear()
    try:
        answer = client.post("/v1/fine_tuning/jobs", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "validation_file")
        assert "4 rows" in error["message"]
    finally:
        monkeypatch.undo()
        settings.cache_clear()
