"""``troll check``: the service's own checks, offline."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.graders.configured import grader_settings
from service.jobs.examination import Findings, Question
from tests import factories
from tests.workers.graders.jails import first_tier
from tests.workers.training import tiny
from workers.control.examination import examine
from workers.demo import make_tokenizer


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


def test_a_method_that_is_not_served_is_refused(training: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(training), "--method", "dpo"], env={"COLUMNS": "200"})
    assert (result.exit_code, "'dpo' is not one of 'supervised', 'reinforcement'" in result.output) == (2, True)


def test_a_grader_is_not_for_supervised_jobs(training: Path, tmp_path: Path) -> None:
    given = ["--grader", str(grader(tmp_path, "{{item.answer}}")), "--method", "supervised"]
    result = CliRunner().invoke(app, ["check", str(training), *given])
    assert (result.exit_code, "leave one of them out" in result.output) == (1, True)


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


TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if limit %}{{ '9' * limit }}{% endif %}{% if reasoning_effort %}{{ '9' * 1000 }}{% endif %}"
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model whose template makes prompts as long as it is told to; its context has 256 tokens."""
    folder = tiny.save(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def examined_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's part in this process, which has its libraries: another takes seconds to import them."""

    def ask(question: Question) -> Findings:
        answer = examine(Question.model_validate_json(question.model_dump_json()))
        return Findings.model_validate_json(answer.model_dump_json())

    # ``service.cli.check`` is the command; its module is of the same name.
    monkeypatch.setattr(sys.modules["service.cli.check"], "_examine", ask)


def check_job(tmp_path: Path, training: Path, base: Path | None, method: dict[str, Any], *more: str) -> Result:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps({"model": "m", "training_file": training.name, "method": method}))
    options = ["--model", str(base)] if base else []
    return CliRunner().invoke(app, ["check", str(training), "--job", str(path), *options, *more])


def reinforcement(**fields: Any) -> dict[str, Any]:
    return {"type": "reinforcement", "reinforcement": {"grader": factories.GRADER, **fields}}


@pytest.mark.parametrize(
    ("hyperparameters", "fits"),
    [
        ({"chat_template_kwargs": {"limit": 3}}, True),
        ({"chat_template_kwargs": {"limit": 1000}}, False),
        ({"reasoning_effort": "high"}, False),
    ],
    ids=str,
)
@pytest.mark.usefixtures("examined_here")
def test_prompts_are_as_long_as_the_job_will_have_them(
    training: Path, tmp_path: Path, base: Path, hyperparameters: dict[str, Any], fits: bool
) -> None:
    result = check_job(tmp_path, training, base, reinforcement(hyperparameters=hyperparameters))
    assert (result.exit_code == 0, "training_file: " in result.output) == (fits, not fits), result.output


@pytest.mark.usefixtures("examined_here")
def test_prompts_are_told_what_the_base_remembers(training: Path, tmp_path: Path, base: Path) -> None:
    (base / "chat_template_kwargs.json").write_text('{"limit": 1000}')
    assert CliRunner().invoke(app, ["check", str(training), "--model", str(base)]).exit_code == 1
    shorter = reinforcement(hyperparameters={"chat_template_kwargs": {"limit": 1}})
    assert check_job(tmp_path, training, base, shorter).exit_code == 0


@pytest.mark.usefixtures("examined_here")
def test_conversations_are_as_long_as_the_job_will_have_them(training: Path, tmp_path: Path, base: Path) -> None:
    answered = [{"messages": [*row["messages"], {"role": "assistant", "content": "1"}]} for row in factories.rows(2)]
    training.write_bytes(factories.jsonl(answered))
    method = {"type": "supervised", "supervised": {"hyperparameters": {"chat_template_kwargs": {"limit": 1000}}}}
    result = check_job(tmp_path, training, base, method)
    assert (result.exit_code, "training_file: " in result.output) == (1, True), result.output


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def answers_of(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"hyperparameters": {"chat_template_kwargs": {"messages": []}}}, "'messages' is what the service itself"),
        ({"hyperparameters": {"kl_bond": 1}}, "Unknown hyperparameter"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        (answers_of({"type": "array", "minItems": 10**9}), "minItems"),
        (answers_of({"type": "nonsense"}), "This JSON schema is not supported"),
    ],
    ids=str,
)
def test_what_creating_the_job_would_refuse_is_refused(
    training: Path, tmp_path: Path, fields: dict[str, Any], why: str
) -> None:
    result = check_job(tmp_path, training, None, reinforcement(**fields))
    assert (result.exit_code, why in result.output) == (1, True), result.output


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"hyperparameters": {"chat_template_kwargs": {"thinking": True}}}, "does not read 'thinking'"),
        # The demo's tokenizer has neither brackets nor letters.
        (answers_of(SCHEMA), "no token of the model can begin what fits it"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("examined_here")
def test_what_the_model_cannot_do_is_refused(
    training: Path, tmp_path: Path, base: Path, fields: dict[str, Any], why: str
) -> None:
    result = check_job(tmp_path, training, base, reinforcement(**fields))
    assert (result.exit_code, why in result.output) == (1, True), result.output


def test_a_format_that_the_model_can_write_passes_in_a_process_of_the_workers(
    training: Path, tmp_path: Path, base: Path
) -> None:
    result = check_job(tmp_path, training, base, reinforcement(**answers_of({"type": "integer"})))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("supervised", "'method'"),
        ({"type": "dpo"}, "'dpo' is not served"),
        ({"type": "reinforcement", "reinforcement": {}}, "method.reinforcement.grader"),
    ],
    ids=str,
)
def test_a_job_that_is_none_is_explained(training: Path, tmp_path: Path, method: Any, why: str) -> None:
    result = check_job(tmp_path, training, None, method)
    assert (result.exit_code, why in result.output) == (1, True), result.output


def test_the_examples_are_jobs_that_pass() -> None:
    for name in ("additions", "additions-supervised"):
        folder = Path("examples")
        job, training = folder / f"{name}.yaml", folder / f"{name}-train.jsonl"
        result = CliRunner().invoke(app, ["check", str(training), "--job", str(job)])
        assert result.exit_code == 0, result.output
