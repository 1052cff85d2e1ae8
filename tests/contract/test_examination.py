"""What a control worker finds in a job, at its submission."""

from pathlib import Path
from typing import Any

import openai
import pytest

from service.core import ask
from tests import factories
from tests.contract.test_graders import code_allowed, control_worker, python
from tests.workers.serving import tiny as serving
from tests.workers.training import tiny
from workers.control import examiner
from workers.demo import make_tokenizer

__all__ = ["code_allowed", "control_worker"]

BROKEN = {"type": "multi", "name": "m", "graders": {"exact": factories.GRADER}, "calculate_output": "exact / 0"}


@pytest.fixture
def alive(control_worker: None) -> None:
    ask.report_alive()


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


def test_a_job_that_holds_is_queued_without_a_word(acme: openai.OpenAI, body: dict[str, Any], alive: None) -> None:
    event = queued(acme, acme.fine_tuning.jobs.create(**body))
    assert (event.level, event.message) == ("info", "Files validated: 8 training rows, 4 validation rows; job queued")


def test_prompts_that_are_too_long_are_refused_with_their_lines(
    acme: openai.OpenAI, body: dict[str, Any], alive: None
) -> None:
    rows = [*factories.rows(2), {"messages": [{"role": "user", "content": "1" * 100}], "answer": "1"}]
    file = acme.files.create(file=factories.jsonl(rows), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.fine_tuning.jobs.create(**{**body, "training_file": file.id})
    assert (refusal.value.code, refusal.value.param) == ("invalid_training_file", "training_file")
    assert "line 3: the prompt has 102 tokens; the model's context is 48" in refusal.value.message
    assert list(acme.fine_tuning.jobs.list()) == []


def test_a_grader_that_fails_on_every_first_row_is_refused(
    connect: Any, api_key: Any, body: dict[str, Any], alive: None
) -> None:
    # Strict clients have no type for a multi grader of several.
    with pytest.raises(openai.BadRequestError) as refusal:
        connect(api_key).fine_tuning.jobs.create(**{**body, "method": factories.method(BROKEN)})
    assert (refusal.value.code, refusal.value.param) == ("invalid_grader", "method.reinforcement.grader")
    assert "line 1: formula_parse_error" in refusal.value.message


@pytest.mark.parametrize("beginning", ["import nowhere", "def rarely_called():\n    import nowhere\n"])
def test_a_grader_that_is_not_valid_is_refused_too(
    acme: openai.OpenAI, body: dict[str, Any], alive: None, code_allowed: None, beginning: str
) -> None:
    method = factories.method(python(beginning))
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.fine_tuning.jobs.create(**{**body, "method": method})
    assert (refusal.value.code, refusal.value.param) == ("invalid_grader", "method.reinforcement.grader")
    assert "(method.reinforcement.grader.source)" in refusal.value.message
    assert "No module named 'nowhere'" in refusal.value.message


def test_rows_that_a_worker_has_no_time_for_hold_no_job_up(
    acme: openai.OpenAI, body: dict[str, Any], alive: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examiner, "SECONDS", 0.0)
    event = queued(acme, acme.fine_tuning.jobs.create(**body))
    assert event.level == "warn"
    assert "those of training_file from line 1 on are counted when training starts" in event.message


def test_without_a_worker_the_job_is_taken_and_that_is_said(acme: openai.OpenAI, body: dict[str, Any]) -> None:
    event = queued(acme, acme.fine_tuning.jobs.create(**body))
    assert event.level == "warn"
    assert "No control worker is running" in event.message


def told(grader: dict[str, Any] = factories.GRADER, response_format: Any = None, **values: Any) -> dict[str, Any]:
    """A method whose template is told ``values``, and its answers held to a format."""
    made = factories.method(grader, **values)
    made["reinforcement"]["response_format"] = response_format
    return made


@pytest.fixture
def thinker(models_dir: Path) -> str:
    """A model of bytes whose template reads three names."""
    name = factories.offer_model(models_dir, "tiny/thinker")
    tokenizer = serving.tokenizer(
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ reasoning_effort }}"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{{ limit }}"
    )
    tokenizer.save_pretrained(models_dir / name)
    serving.model().config.save_pretrained(models_dir / name)
    return name


def test_what_the_template_is_told_is_counted_shown_and_remembered_by_the_next_job(
    connect: Any, api_key: Any, body: dict[str, Any], thinker: str, models_dir: Path, alive: None
) -> None:
    acme, values = connect(api_key), {"enable_thinking": False, "limit": "x" * serving.CONTEXT}
    with pytest.raises(openai.BadRequestError, match="the model's context is 4096"):
        acme.fine_tuning.jobs.create(**{**body, "model": thinker, "method": told(chat_template_kwargs=values)})
    values["limit"] = 3
    job = acme.fine_tuning.jobs.create(**{**body, "model": thinker, "method": told(chat_template_kwargs=values)})
    assert job.method.reinforcement.hyperparameters.model_extra["chat_template_kwargs"] == values
    (models_dir / thinker / "chat_template_kwargs.json").write_text('{"limit": 1, "reasoning_effort": "low"}')
    for hyperparameters, expected in (
        ({}, {"limit": 1, "reasoning_effort": "low"}),
        ({"chat_template_kwargs": {"limit": 2}}, {"limit": 2, "reasoning_effort": "low"}),
        ({"reasoning_effort": "high"}, {"limit": 1}),
    ):
        job = acme.fine_tuning.jobs.create(**{**body, "model": thinker, "method": told(**hyperparameters)})
        assert job.method.reinforcement.hyperparameters.model_extra["chat_template_kwargs"] == expected
        queued(acme, job)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"thinking": True}, "does not read 'thinking'. It reads: enable_thinking, limit, reasoning_effort."),
        ({"messages": []}, "'messages' is what the service itself tells the chat template"),
        ({"bos_token": ""}, "'bos_token' is what the service itself tells the chat template"),
        ({"limit": "x" * 20_000}, "at most 16384 are allowed"),
        ("low", "an object"),
    ],
)
@pytest.mark.parametrize("kind", ["reinforcement", "supervised"])
def test_what_the_template_cannot_be_told_is_named(
    acme: openai.OpenAI, body: dict[str, Any], thinker: str, alive: None, kind: str, values: Any, why: str
) -> None:
    method = told(chat_template_kwargs=values)
    if kind == "supervised":
        file = acme.files.create(file=factories.jsonl(factories.answered_rows(8)), purpose="fine-tune").id
        method = {"type": kind, kind: {"hyperparameters": {"chat_template_kwargs": values}}}
        body = {"training_file": file}
    with pytest.raises(openai.BadRequestError, match=why) as refusal:
        acme.fine_tuning.jobs.create(**{**body, "model": thinker, "method": method})
    assert refusal.value.param == f"method.{kind}.hyperparameters.chat_template_kwargs"


def test_two_efforts_are_one_too_many(acme: openai.OpenAI, body: dict[str, Any]) -> None:
    method = told(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"})
    with pytest.raises(openai.BadRequestError, match="give one"):
        acme.fine_tuning.jobs.create(**{**body, "method": method})


def test_an_effort_that_the_template_does_not_read_is_a_warning(
    acme: openai.OpenAI, body: dict[str, Any], thinker: str, alive: None
) -> None:
    warning = "The model's chat template does not read reasoning_effort, which is without effect"
    for model, warnings in ((body["model"], [warning]), (thinker, [])):
        job = acme.fine_tuning.jobs.create(**{**body, "model": model, "method": told(reasoning_effort="low")})
        events = list(acme.fine_tuning.jobs.list_events(job.id))
        assert [event.message for event in events if "reasoning_effort" in event.message] == warnings


SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize("wanted", [FORMAT, {"type": "json_object"}, {"type": "text"}, None])
def test_a_format_of_answers_is_answered_as_it_was_sent(
    connect: Any, api_key: Any, body: dict[str, Any], thinker: str, alive: None, wanted: Any
) -> None:
    acme = connect(api_key)
    job = acme.fine_tuning.jobs.create(**{**body, "model": thinker, "method": told(response_format=wanted)})
    queued(acme, job)
    again = acme.fine_tuning.jobs.retrieve(job.id)
    assert again.method.reinforcement.model_extra["response_format"] == wanted


def of_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


@pytest.mark.parametrize(
    ("wanted", "code", "why"),
    [
        ({"type": "json_schema"}, "invalid_value", "json_schema needs a 'json_schema' with a 'schema'"),
        ({"type": "grammar"}, "invalid_value", "'text', 'json_object' or 'json_schema'"),
        ("json_object", "invalid_value", "an object"),
        (of_schema({"type": "string", "pattern": "x" * 1001}), "invalid_value", "at most 1000 characters"),
        (of_schema({"type": "nonsense"}), "invalid_json_schema", "This JSON schema is not supported"),
        (of_schema({"enum": []}), "invalid_json_schema", "This JSON schema is not supported"),
    ],
)
def test_a_format_that_answers_cannot_be_held_to_is_refused_as_in_a_chat(
    acme: openai.OpenAI, body: dict[str, Any], thinker: str, alive: None, wanted: Any, code: str, why: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=why) as refusal:
        acme.fine_tuning.jobs.create(**{**body, "model": thinker, "method": told(response_format=wanted)})
    assert refusal.value.code == code
    assert (refusal.value.param or "").startswith("method.reinforcement.response_format")
