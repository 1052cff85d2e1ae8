"""What a control worker finds in a job, at its submission."""

from pathlib import Path
from typing import Any

import openai
import pytest

from service.core import ask
from tests import factories
from tests.contract.test_graders import code_allowed, control_worker, python
from tests.workers.training import tiny
from workers import examiner
from workers.demo import make_tokenizer

__all__ = ["code_allowed", "control_worker"]

BROKEN = {"type": "multi", "name": "m", "graders": {"exact": factories.GRADER}, "calculate_output": "exact / 0"}


@pytest.fixture
def attended(control_worker: None) -> None:
    ask.attend()


@pytest.fixture
def model(models_dir: Path) -> str:
    """A model with a tokenizer and a context of ``tiny.CONTEXT`` tokens; nobody loads its weights."""
    name = factories.offer_model(models_dir, "tiny/counted")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(models_dir / name)
    tiny.CONFIGS["qwen3"](len(tokenizer)).save_pretrained(models_dir / name)
    return name


def queued(client: openai.OpenAI, job: Any) -> Any:
    (event,) = (each for each in client.fine_tuning.jobs.list_events(job.id) if "job queued" in each.message)
    return event


def test_a_job_that_holds_is_queued_without_a_word(acme: openai.OpenAI, body: dict[str, Any], attended: None) -> None:
    event = queued(acme, acme.fine_tuning.jobs.create(**body))
    assert (event.level, event.message) == ("info", "Files validated: 8 training rows, 4 validation rows; job queued")


def test_prompts_that_are_too_long_are_refused_with_their_lines(
    acme: openai.OpenAI, body: dict[str, Any], attended: None
) -> None:
    rows = [*factories.rows(2), {"messages": [{"role": "user", "content": "1" * 100}], "answer": "1"}]
    file = acme.files.create(file=factories.jsonl(rows), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.fine_tuning.jobs.create(**{**body, "training_file": file.id})
    assert (refusal.value.code, refusal.value.param) == ("invalid_training_file", "training_file")
    assert "line 3: the prompt has 102 tokens; the model's context is 48" in refusal.value.message
    assert list(acme.fine_tuning.jobs.list()) == []


def test_a_grader_that_fails_on_every_first_row_is_refused(
    connect: Any, api_key: Any, body: dict[str, Any], attended: None
) -> None:
    # Strict clients have no type for a multi grader of several.
    with pytest.raises(openai.BadRequestError) as refusal:
        connect(api_key).fine_tuning.jobs.create(**{**body, "method": factories.method(BROKEN)})
    assert (refusal.value.code, refusal.value.param) == ("invalid_grader", "method.reinforcement.grader")
    assert "line 1: formula_parse_error" in refusal.value.message


@pytest.mark.parametrize("beginning", ["import nowhere", "def rarely_called():\n    import nowhere\n"])
def test_a_grader_that_is_not_valid_is_refused_too(
    acme: openai.OpenAI, body: dict[str, Any], attended: None, code_allowed: None, beginning: str
) -> None:
    method = factories.method(python(beginning))
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.fine_tuning.jobs.create(**{**body, "method": method})
    assert (refusal.value.code, refusal.value.param) == ("invalid_grader", "method.reinforcement.grader")
    assert "(method.reinforcement.grader.source)" in refusal.value.message
    assert "No module named 'nowhere'" in refusal.value.message


def test_rows_that_a_worker_has_no_time_for_hold_no_job_up(
    acme: openai.OpenAI, body: dict[str, Any], attended: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examiner, "SECONDS", 0.0)
    event = queued(acme, acme.fine_tuning.jobs.create(**body))
    assert event.level == "warn"
    assert "those of training_file from line 1 on are counted when training starts" in event.message


def test_without_a_worker_the_job_is_taken_and_that_is_said(acme: openai.OpenAI, body: dict[str, Any]) -> None:
    event = queued(acme, acme.fine_tuning.jobs.create(**body))
    assert event.level == "warn"
    assert "No control worker is running" in event.message
