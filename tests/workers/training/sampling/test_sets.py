"""Validation sets beside the validation file: what is told of them, and that they change nothing else."""

from collections.abc import Callable
from typing import Any

import pytest

from service.jobs.spec import RunSpec
from service.jobs.validation import ValidationSet
from tests.workers.training import tiny
from tests.workers.training.tiny import Recorder
from workers import wire
from workers.wire import ExitCode

MakeSpec = Callable[..., RunSpec]
Execute = Callable[..., tuple[int, Recorder]]

LIKE = tiny.EXACT | {"name": "like", "reference": "1", "operation": "like"}
GREEDY: dict[str, Any] = {"name": "greedy", "samples_per_row": 3, "temperature": 0.0, "max_completion_tokens": 2}
LOOSE: dict[str, Any] = {"name": "loose", "samples_per_row": 2, "top_p": 0.9, "grader": LIKE}


def declared(**asked: Any) -> ValidationSet:
    plain = {
        "file": "file_3",
        "rows": len(tiny.ROWS),
        "grader": None,
        "samples_per_row": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_completion_tokens": 5,
    }
    return ValidationSet.model_validate(plain | asked)


def with_sets(spec: RunSpec, *asked: dict[str, Any]) -> RunSpec:
    """The same run, evaluated on all rows once more for each set that is asked for."""
    method = spec.job.method.model_copy(update={"validation_sets": [declared(**each) for each in asked]})
    job = spec.job.model_copy(update={"method": method})
    return spec.model_copy(update={"job": job, "validation_set_paths": [spec.training_path] * len(asked)})


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, base: Any) -> dict[str, Recorder]:
    """A run with two sets, the same with one of them, and without any."""
    from workers.training.__main__ import run_one_job

    recorders = {}
    for name, sets in {"both": (GREEDY, LOOSE), "loose": (LOOSE,), "none": ()}.items():
        made = tiny.spec(tmp_path_factory.mktemp(name), base, n_steps=2, eval_interval=1, max_staleness=1)
        spec = with_sets(made, *sets)
        recorders[name] = Recorder()
        path = spec.training_path.with_name("run.json")
        path.write_text(spec.model_dump_json())
        recorders[name].channel.starts.put(path)
        assert run_one_job(recorders[name].channel) == ExitCode.DONE
    return recorders


def by_set(recorder: Recorder, name: str) -> list[dict[str, Any]]:
    return [data["validation_sets"][name] for data in recorder.metrics().values()]


def test_each_set_is_told_at_every_evaluation(ran: dict[str, Recorder]) -> None:
    for name, answers in (("greedy", 3), ("loose", 2)):
        told = by_set(ran["both"], name)
        assert [(each["rows"], each["answers_per_row"]) for each in told] == [(len(tiny.ROWS), answers)] * 3
        assert all(each["reward_mean_low"] <= each["mean_at_k"] <= each["reward_mean_high"] for each in told)
        assert all(each["pass_at_k"].keys() == each["pass_at_k_low"].keys() for each in told)


def test_a_set_is_sampled_and_graded_as_it_says(ran: dict[str, Recorder]) -> None:
    # Greedy answers to a row are one answer, which a grader of its own gives 1 or 0; ``tiny.CLOSE`` gives fractions.
    assert all(each["best_at_k"] == each["mean_at_k"] for each in by_set(ran["both"], "greedy"))
    for each in by_set(ran["both"], "loose"):
        assert (each["mean_at_k"] * 2 * len(tiny.ROWS)).is_integer()
        assert each["pass_at_k"]["2"] == each["best_at_k"]


def test_what_a_set_says_does_not_depend_on_the_others(ran: dict[str, Recorder]) -> None:
    assert by_set(ran["both"], "loose") == by_set(ran["loose"], "loose")


def test_training_and_the_validation_file_know_nothing_of_sets(ran: dict[str, Recorder]) -> None:
    with_, without = (tiny.without_times(ran[name].metrics()) for name in ("both", "none"))
    for data in (*with_.values(), *without.values()):
        del data["validation_sets"]
    assert with_ == without


def test_checkpoints_tell_of_the_sets_by_the_names_of_the_events_numbers(ran: dict[str, Recorder]) -> None:
    newest = [line for line in ran["both"].lines if isinstance(line, wire.Checkpoint)][-1]
    told = by_set(ran["both"], "greedy")[-1]
    assert newest.metrics["validation_sets.greedy.mean_at_k"] == told["mean_at_k"]
    assert newest.metrics["validation_sets.loose.pass_at_k.2"] == by_set(ran["both"], "loose")[-1]["pass_at_k"]["2"]


def test_a_grader_of_a_set_that_never_works_ends_the_job_at_its_beginning(
    make_spec: MakeSpec, execute: Execute
) -> None:
    broken = {"type": "multi", "calculate_output": "1 / (x - x)", "graders": {"x": LIKE}}
    code, recorder = execute(with_sets(make_spec(), {"name": "broken", "grader": broken}))
    assert code == ExitCode.GRADER_ERROR
    assert recorder.metrics() == {}


def test_a_prompt_of_a_set_that_is_too_long_is_told_with_its_field(make_spec: MakeSpec, execute: Execute) -> None:
    spec = with_sets(make_spec(), GREEDY)
    long = spec.training_path.with_name("long.jsonl")
    long.write_text('{"messages": [{"role": "user", "content": "%s"}], "answer": "1"}\n' % ("1+" * tiny.CONTEXT))
    _, recorder = execute(spec.model_copy(update={"validation_set_paths": [long]}))
    assert recorder.failure().param == "method.reinforcement.validation_sets[0].file"
