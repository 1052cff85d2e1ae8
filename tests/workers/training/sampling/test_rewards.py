"""What answers earn that could not be graded, and what is said of it."""

from typing import Any

import pytest

from service.graders.schemas import parse_grader
from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from tests.workers.training import tiny
from tests.workers.training.tiny import Recorder
from workers import graders, wire
from workers.answers import Answer
from workers.data.prompts import Prompt
from workers.errors import RunError
from workers.graders import Grade, GraderSample, TokenUsage
from workers.rollouts.engine import Rollout
from workers.training.data import batch
from workers.training.data.batch import Sample
from workers.training.reporting import metrics
from workers.training.sampling.rewards import MAX_KINDS, Rewards
from workers.wire import ExitCode

PYTHON = {"type": "python", "name": "own", "source": "def grade(sample, item): return 1"}
JSON = {**tiny.EXACT, "input": "{{sample.output_json.x}}"}
PLUS_MINUS = {"type": "multi", "graders": {"a": JSON}, "calculate_output": "a*2-1"}
RAISED = Grade(None, error="python_grader_runtime_error", detail="line 1\nZeroDivisionError: by zero", raised=True)
BROKEN = Grade(None, error="python_grader_server_error", detail="no jail")
NO_JSON = Grade(None, error="sample_parse_error", detail="the answer is not JSON", sample_at_fault=True)


def samples(*grades: Grade) -> list[list[Sample]]:
    rollout = Rollout([7, 8], [-0.5] * 2, "stop")
    item = {"messages": [{"role": "user", "content": "1+1="}]}
    return [[Sample(Prompt(item, [5]), rollout, Answer("", 0), grade) for grade in grades]]


def rewards(groups: list[list[Sample]]) -> list[float | None]:
    return [sample.reward for group in groups for sample in group]


def of(grader: dict[str, Any], recorder: Recorder | None = None) -> Rewards:
    return Rewards(parse_grader(grader, "grader"), (recorder or Recorder()).channel)


def graded(raw: dict[str, Any], *answers: str) -> list[Grade]:
    return graders.build(parse_grader(raw, "grader")).grade([GraderSample({"answer": "1"}, text) for text in answers])


def test_an_answer_at_fault_earns_what_a_wrong_one_earns() -> None:
    settled = of(PLUS_MINUS).settle(samples(*graded(PLUS_MINUS, '{"x": 1}', '{"x": 2}', "no JSON", "{}")))
    assert rewards(settled) == [1.0, -1.0, -1.0, -1.0]
    advantages = [each.advantage for each in batch.trainable(settled, resolve(Hyperparameters(), training_rows=8))[0]]
    assert advantages[1] == advantages[2] == advantages[3] < 0


def test_what_a_service_says_may_hold_half_a_character() -> None:
    """As of a text that was cut in JavaScript, whose characters are UTF-16's."""
    recorder = Recorder()
    said = Grade(None, error="other_error", detail="The scoring service: cannot read 'größe 🦙 \ud83d'")
    of(tiny.EXACT, recorder).settle(samples(said, Grade(1.0)))
    assert recorder.messages()[0].endswith("cannot read 'größe 🦙 \ufffd'")
    event = wire.Event(message="m", data={"a\udc00": ["\ud800"]})
    failure = wire.Failure(code="c", message="\ud800")
    recorder.channel.send(event)
    recorder.channel.send(failure)
    assert recorder.lines[1:] == [event, failure]
    assert event.data == {"a\ufffd": ["\ufffd"]}


def test_a_formula_that_fails_on_a_score_earns_the_least() -> None:
    raw = {"type": "multi", "graders": {"a": tiny.EXACT}, "calculate_output": "1/a - 3"}
    assert rewards(of(raw).settle(samples(*graded(raw, "1", "2")))) == [-2.0, -2.0]


def test_an_answer_that_code_raises_on_counts_in_the_mean() -> None:
    settled = of(PYTHON).settle(samples(*[Grade(1.0)] * 95, *[RAISED] * 5))
    assert metrics.reward_mean(settled) == pytest.approx(0.95)


def test_the_least_is_remembered_from_step_to_step() -> None:
    kept = of(PYTHON)
    assert rewards(kept.settle(samples(RAISED, Grade(0.5)))) == [0.0, 0.5]
    assert rewards(kept.settle(samples(Grade(-2.0), RAISED))) == [-2.0, -2.0]
    assert rewards(kept.settle(samples(Grade(1.0), RAISED))) == [1.0, -2.0]
    assert kept.given == -2.0


def test_a_failure_of_the_machinery_is_no_reward() -> None:
    settled = of(PYTHON).settle(samples(Grade(1.0), BROKEN, Grade(0.0)))
    assert rewards(settled) == [1.0, None, 0.0]


def test_every_kind_of_failure_is_told_once_with_its_text_and_number() -> None:
    recorder = Recorder()
    kept = of(PYTHON, recorder)
    other = Grade(None, error="python_grader_runtime_error", detail="KeyError: 'x'", raised=True)
    for _ in range(2):
        kept.settle(samples(Grade(1.0), Grade(0.0), RAISED, RAISED, other, BROKEN))
    told = recorder.messages()
    assert len(told) == 3
    assert (
        "2 of 6 answers (python_grader_runtime_error); such answers earn the least that it gives, which is 0" in told[0]
    )
    assert "ZeroDivisionError: by zero" in told[0]
    assert "KeyError: 'x'" in told[1]
    assert "no reward for 1 of 6 answers (python_grader_server_error), which are left out" in told[2]


def test_failures_without_end_are_not_told_without_end() -> None:
    recorder = Recorder()
    kinds = [Grade(None, error="other_error", detail=f"kind {n}") for n in range(50)]
    of(PYTHON, recorder).settle(samples(*kinds))
    assert len(recorder.messages()) == MAX_KINDS


def test_code_that_never_works_ends_the_run() -> None:
    with pytest.raises(RunError, match=r"(?s)2 of 3 samples.*ZeroDivisionError: by zero") as caught:
        of(PYTHON).settle(samples(RAISED, NO_JSON, RAISED))
    assert (caught.value.code, caught.value.exit_code) == ("grader_failed", ExitCode.GRADER_ERROR)


def test_code_that_worked_before_may_fail_on_all() -> None:
    kept = of(PYTHON)
    kept.settle(samples(Grade(1.0)))
    assert rewards(kept.settle(samples(RAISED, RAISED))) == [0.0, 0.0]


def event(valid: list[list[Sample]], grader: dict[str, Any]) -> dict[str, Any]:
    told = metrics.event(0, 1, parse_grader(grader, "grader"), train=None, valid=valid, sets={}, numbers={}, seconds={})
    assert told.data is not None
    return told.data | {"message": told.message}


def test_means_say_over_how_many_answers_they_were_taken() -> None:
    data = event(of(PYTHON).settle(samples(Grade(1.0), RAISED, BROKEN)), PYTHON)
    assert (data["scores"]["valid_reward_mean"], data["scores"]["valid_reward_count"]) == (0.5, 2)
    assert data["scores"]["graders"][0]["valid_reward_count"] == 2
    assert data["scores"]["train_reward_count"] == 0
    assert "full validation mean reward=0.5000 (of 2 of 3 answers)" in data["message"]


def test_tokens_of_judges_are_in_the_metrics() -> None:
    judge = {"type": "score_model", "name": "judge", "model": "m", "input": [{"role": "user", "content": "x"}]}
    used = [Grade(1.0, usage={"m": TokenUsage(10, 4, 2)}), Grade(0.0, usage={"m": TokenUsage(20, 6, 0)})]
    data = event(samples(*used), judge)
    usage = data["model_graders_token_usage"]["m"]
    assert (usage["eval_prompt_tokens"], usage["eval_completion_tokens"], usage["eval_cached_tokens"]) == (30, 10, 2)
    (row,) = data["usage"]["graders"]
    assert (row["name"], row["type"], row["model"]) == ("judge", "score_model", "m")
    assert (row["valid_prompt_tokens_mean"], row["valid_prompt_tokens_count"]) == (15, 30)
    assert (row["valid_completion_tokens_mean"], row["train_prompt_tokens_count"]) == (5, None)


def test_each_judge_of_a_multi_grader_has_its_own_tokens() -> None:
    judge = {"type": "score_model", "model": "m", "input": [{"role": "user", "content": "x"}]}
    other = {**judge, "type": "label_model", "model": "n", "labels": ["a"], "passing_labels": ["a"]}
    raw = {"type": "multi", "graders": {"a": judge, "b": judge, "c": other, "d": tiny.EXACT}, "calculate_output": "a"}
    each = {"a": TokenUsage(1, 2), "b": TokenUsage(10, 20), "c": TokenUsage(100, 200)}
    used = {"m": TokenUsage(11, 22), "n": TokenUsage(100, 200)}
    data = event(samples(*[Grade(1.0, usage=used, sub_usage=each)] * 3), raw)
    rows = {row["name"]: row for row in data["usage"]["graders"]}
    assert {name: (row["type"], row["model"]) for name, row in rows.items()} == {
        "a": ("score_model", "m"),
        "b": ("score_model", "m"),
        "c": ("label_model", "n"),
    }
    assert [rows[name]["valid_prompt_tokens_count"] for name in "abc"] == [3, 30, 300]
    assert [rows[name]["valid_completion_tokens_mean"] for name in "abc"] == [2, 20, 200]
    by_model = data["model_graders_token_usage"]
    assert (by_model["m"]["eval_prompt_tokens"], by_model["n"]["eval_completion_tokens"]) == (33, 600)


def test_a_judge_that_used_nothing_is_told_with_zeros() -> None:
    judge = {"type": "score_model", "name": "judge", "model": "m", "input": [{"role": "user", "content": "x"}]}
    data = event(samples(BROKEN), judge)
    assert set(data["model_graders_token_usage"]["m"].values()) == {0}
    assert data["usage"]["graders"][0]["valid_prompt_tokens_count"] == 0
