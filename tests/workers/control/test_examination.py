"""What is looked at before a job is accepted: prompts in tokens, graders at work on the first rows."""

import itertools
import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from service.graders.configured import grader_settings
from service.graders.schemas import Grader
from service.jobs.examination import Findings, Question
from tests.factories import GRADER as EXACT
from tests.workers.graders.jails import first_tier
from tests.workers.training import tiny
from workers.control import examination
from workers.control.examination import examine, stand_ins
from workers.data import jsonl, prompts
from workers.data.prompts import Prompt, load_prompts
from workers.demo import make_tokenizer
from workers.errors import RunError
from workers.training import method

GRADER = "method.reinforcement.grader"
PYTHON = {"type": "python", "name": "p"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a context of ``tiny.CONTEXT`` tokens. Nobody loads its weights here."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny.CONFIGS["qwen3"](len(tokenizer)).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(name: str, *rows: dict[str, Any]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def row(prompt: str = "12+34=", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], **fields}


def tried(grader: dict[str, Any], training: Path) -> Findings:
    definition = TypeAdapter(Grader).validate_python(grader)
    return examine(Question(model=None, files={"training_file": training}, grader=definition))


# Tokens


def test_prompts_that_leave_no_room_are_named_by_line_in_both_files(model: Path, write: Any) -> None:
    # The template adds two tokens, and an answer needs one.
    fits, full, long = "1" * (tiny.CONTEXT - 3), "1" * (tiny.CONTEXT - 2), "1" * 500
    files = {
        "training_file": write("train", row(fits), row(full), row(), row(long)),
        "validation_file": write("valid", row(), row(long)),
    }
    problems = examine(Question(model=model, files=files, grader=None)).problems
    assert set(problems) == set(files)
    assert "line 2: the prompt has 48 tokens" in problems["training_file"]
    assert "line 4: the prompt has 502 tokens" in problems["training_file"]
    assert "line 1" not in problems["training_file"]
    assert "line 2: the prompt has 502 tokens" in problems["validation_file"]


@pytest.mark.parametrize("method", ["reinforcement", "supervised"])
def test_tokens_without_an_embedding_are_named(model: Path, write: Any, tmp_path: Path, method: Any) -> None:
    folder = tmp_path / "added"
    shutil.copytree(model, folder)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)

    def asked(prompt: str) -> Findings:
        answer = [{"role": "assistant", "content": "46"}] if method == "supervised" else []
        files = {"training_file": write("train", {"messages": [*row(prompt)["messages"], *answer]})}
        return examine(Question(model=folder, files=files, grader=None, method=method))

    assert asked("1+2=").problems == {}
    assert "'<new>'" in asked("1+<new>=").problems["model"]


def test_conversations_of_a_supervised_job_are_counted_with_their_answers(model: Path, write: Any) -> None:
    def answered(prompt: str) -> dict[str, Any]:
        return {"messages": [*row(prompt)["messages"], {"role": "assistant", "content": "46"}]}

    # Two tokens of the template, the answer's two and its end.
    path = write("train", answered("1" * (tiny.CONTEXT - 5)), answered("1" * (tiny.CONTEXT - 4)))
    found = examine(Question(method="supervised", model=model, files={"training_file": path}, grader=None))
    (problem,) = found.problems.values()
    assert "line 2: the conversation has 49 tokens; the model's context is 48" in problem
    assert "line 1" not in problem


def test_counts_are_those_of_the_training_process(model: Path, write: Any) -> None:
    path = write("train", row("1" * 100), {"messages": [{"role": "system", "content": "1"}]})
    with pytest.raises(RunError) as refusal:
        load_prompts(path, make_tokenizer(), tiny.CONTEXT, "training_file")
    found = examine(Question(model=model, files={"training_file": path}, grader=None))
    assert found.problems == {"training_file": str(refusal.value)}


def test_the_longest_answer_is_what_the_context_leaves_beside_the_shortest_prompt(model: Path, write: Any) -> None:
    files = {"training_file": write("train", row("1" * 20), row("1" * 9)), "validation_file": write("valid", row())}
    # Of the shortest, "12+34=", and the template's two.
    assert examine(Question(model=model, files=files, grader=None)).longest_answer == tiny.CONTEXT - 6 - 2


def test_a_job_that_samples_nothing_has_no_longest_answer(model: Path, write: Any) -> None:
    answered = {"messages": [*row()["messages"], {"role": "assistant", "content": "46"}]}
    files = {"training_file": write("train", answered)}
    assert examine(Question(method="supervised", model=model, files=files, grader=None)).longest_answer is None


def test_counting_forgets_what_it_read(model: Path, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = prompts.read_prompts
    seen: list[Any] = []
    kept: list[Any] = []

    def watched(*args: Any) -> list[Prompt]:
        kept.extend(each for each in seen if each() is not None)
        found = read(*args)
        seen.extend(map(weakref.ref, found))
        return found

    monkeypatch.setattr(jsonl, "BATCH_ROWS", 2)
    monkeypatch.setattr(method, "read_prompts", watched)
    path = write("train", *[row()] * 7)
    assert examine(Question(model=model, files={"training_file": path}, grader=None)).problems == {}
    assert (len(seen), kept) == (7, [])


@pytest.mark.parametrize("method", ["reinforcement", "supervised"])
def test_rows_that_there_is_no_time_for_are_told_and_the_others_count(
    model: Path, write: Any, monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    monkeypatch.setattr(jsonl, "BATCH_ROWS", 2)
    clock = itertools.count()
    monkeypatch.setattr(examination, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    answered = {"messages": [*row()["messages"], {"role": "assistant", "content": "46"}]}
    each = row() if method == "reinforcement" else answered
    files = {"training_file": write("train", *[each] * 3, row("1" * 500), *[row("1" * 600)] * 3)}
    found = examine(Question(method=method, model=model, files=files, grader=None), seconds=2.5)
    assert found.problems["training_file"].startswith("1 rows cannot be trained on: line 4")
    assert found.notes == [
        "Not all rows were counted in tokens: those of training_file from line 5 on are counted when training starts"
    ]


def test_a_model_without_a_tokenizer_is_the_models_problem(write: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = examine(Question(model=tmp_path, files={"training_file": write("train", row())}, grader=None))
    assert set(found.problems) == {"model"}


# Graders


def test_a_grader_that_works_has_nothing_said_of_it(write: Any) -> None:
    assert tried(EXACT, write("train", row(answer="46"))) == Findings()


def test_a_formula_that_never_has_a_value_is_refused_with_its_lines(write: Any) -> None:
    broken = {"type": "multi", "name": "m", "graders": {"exact": EXACT}, "calculate_output": "exact / 0"}
    problem = tried(broken, write("train", *[row(answer="46")] * 5)).problems[GRADER]
    assert "formula_parse_error" in problem
    assert all(f"line {line}" in problem for line in (1, 2, 3))
    assert "line 4" not in problem


def test_a_grader_that_there_was_no_time_to_try_is_not_refused(write: Any) -> None:
    broken = {"type": "multi", "name": "m", "graders": {"exact": EXACT}, "calculate_output": "exact / 0"}
    definition = TypeAdapter(Grader).validate_python(broken)
    files = {"training_file": write("train", row(answer="46"))}
    found = examine(Question(model=None, files=files, grader=definition), seconds=0)
    assert found == Findings(notes=["The grader is slow: it was not tried with all stand-ins for answers"])


def test_what_fails_on_some_rows_only_is_a_note(write: Any) -> None:
    math = {"type": "math_verify", "name": "m", "reference": "{{item.answer}}"}
    found = tried(math, write("train", row(answer=""), row(answer="46")))
    assert found.problems == {}
    assert "line 1: other_error" in found.notes[0], found


def test_an_answer_that_lacks_what_is_read_is_the_models_fault_only(write: Any) -> None:
    grader = {**EXACT, "input": "{{sample.output_json.no.such.field}}"}
    assert tried(grader, write("train", row(answer="46"))) == Findings()


def test_a_judge_that_cannot_be_reached_is_refused(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = {"base_url": "http://127.0.0.1:9/v1", "models": ["judge"]}
    monkeypatch.setenv("TROLL_GRADERS", json.dumps({"model_endpoints": [endpoint]}))
    grader_settings.cache_clear()
    judge = {"type": "score_model", "name": "j", "model": "judge", "input": [{"role": "user", "content": "Score it."}]}
    try:
        refusal = tried(judge, write("train", *[row()] * 3)).problems[GRADER]
        assert refusal.startswith(
            "The grader cannot be tried, for what it asks does not answer. The judge could not be"
        )
        assert "('judge' at http://127.0.0.1:9)" in refusal
        assert refusal.count("127.0.0.1") == 1, "the same reason is told once for several rows"
        assert "reward" not in refusal
    finally:
        monkeypatch.undo()
        grader_settings.cache_clear()


@pytest.fixture
def jailed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TROLL_GRADERS", json.dumps({"jail": first_tier()}))
    grader_settings.cache_clear()
    yield
    monkeypatch.undo()
    grader_settings.cache_clear()


def test_code_that_raises_whatever_is_answered_is_refused(write: Any, jailed: None) -> None:
    source = "def grade(sample, item):\n    return scores[item['answer']]\n"
    problem = tried({**PYTHON, "source": source}, write("train", row(answer="46"))).problems[GRADER]
    assert "NameError" in problem


@pytest.mark.parametrize(
    "reads", ["float(text)", "json.loads(text)['answer'] == item['answer']", "len(json.loads(text))"]
)
def test_code_that_reads_what_the_model_may_answer_passes(write: Any, jailed: None, reads: str) -> None:
    source = f"import json\ndef grade(sample, item):\n    text = sample['output_text']\n    return float({reads})\n"
    assert tried({**PYTHON, "source": source}, write("train", row(answer="46"))) == Findings()


def test_stand_ins_begin_with_what_the_row_knows() -> None:
    answers = stand_ins(row(answer="46", why={"a": 1}))
    assert answers[:2] == ["46", json.dumps({"answer": "46", "why": {"a": 1}})]
    assert {"0", "{}"} <= set(answers)
