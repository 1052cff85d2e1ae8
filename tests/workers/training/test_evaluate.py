"""Evaluations without training: figures, where an attempt goes on, and what ends one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.jobs.hyperparameters.evaluation import EvaluationHyperparameters
from service.jobs.hyperparameters.option import resolve
from service.jobs.methods.evaluation import Evaluation
from service.jobs.spec import RunSpec
from tests.workers.training import tiny
from tests.workers.training.sampling.test_sets import GREEDY, LOOSE, declared, with_sets
from tests.workers.training.test_reinforcement import Killed, attempt
from tests.workers.training.tiny import Recorder
from workers import wire
from workers.training.data.batch import Sample
from workers.training.sampling import rollouts
from workers.training.sampling.sets import EvaluationSet
from workers.wire import ExitCode

Execute = Callable[..., tuple[int, Recorder]]


def evaluation(spec: RunSpec, *sets: dict[str, Any], batch_size: int = 4, grader: Any = tiny.CLOSE) -> RunSpec:
    """An evaluation of the model of ``spec`` on its training rows, once for each of ``sets``."""
    asked = EvaluationHyperparameters(batch_size=batch_size, max_completion_tokens=5)
    method = Evaluation(
        grader=grader,
        hyperparameters=resolve(asked, training_rows=0),
        validation_sets=[declared(**each) for each in sets],
    )
    job = spec.job.model_copy(update={"method": method, "training_file": None, "validation_file": None})
    paths = [spec.training_path] * len(sets)
    return spec.model_copy(update={"job": job, "validation_path": None, "validation_set_paths": paths})


@pytest.fixture
def spec(tmp_path: Path, base: Path) -> RunSpec:
    return tiny.spec(tmp_path / "run", base)


def figures(*recorders: Recorder) -> dict[str, Any]:
    """By set, as a sink would have them that knows an event by its key."""
    events = {line.key: line for each in recorders for line in each.lines if isinstance(line, wire.Event) and line.data}
    return {
        name: found
        for event in events.values()
        for name, found in (event.data or {}).get("validation_sets", {}).items()
    }


def test_figures_are_those_of_the_base_model_in_a_job_that_trains(spec: RunSpec, execute: Execute) -> None:
    _, trained = execute(with_sets(spec, GREEDY, LOOSE))
    alone = attempt(evaluation(spec, GREEDY, LOOSE, batch_size=5), 2, [])
    code, recorder = execute(alone)
    assert code == ExitCode.DONE
    assert figures(recorder) == trained.metrics()[0]["validation_sets"]
    assert recorder.lines[-1] == wire.Evaluated(step=4)
    assert [path.name for path in alone.output_dir.iterdir()] == ["answered"]


@pytest.mark.parametrize("stops", [True, False], ids=["asked to stop", "killed"])
def test_an_attempt_goes_on_behind_what_is_answered(
    spec: RunSpec, execute: Execute, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    whole = evaluation(spec, GREEDY, LOOSE)
    _, expected = execute(whole.model_copy(update={"output_dir": spec.output_dir.with_name("elsewhere") / "out"}))

    def on_line(line: wire.Line) -> None:
        if isinstance(line, wire.Progress) and line.step == 2:
            if not stops:
                raise Killed
            first.channel.stop()

    first = Recorder(on_line)
    if stops:
        assert execute(whole, first)[0] == ExitCode.STOPPED
    else:
        with pytest.raises(Killed):
            execute(whole, first)
    asked: list[tuple[str, int]] = []
    sampled = rollouts.evaluate

    def counted(evaluated: EvaluationSet, *rest: Any) -> list[list[Sample]]:
        asked.append((evaluated.name, rest[-1]))
        return sampled(evaluated, *rest)

    monkeypatch.setattr(rollouts, "evaluate", counted)
    code, second = execute(attempt(whole, 2, []))
    assert code == ExitCode.DONE
    assert asked == [("greedy", 8), ("loose", 0), ("loose", 4), ("loose", 8)]
    assert [line.step for line in second.lines if isinstance(line, wire.Progress)] == [3, 4, 5, 6]
    assert figures(first, second) == figures(expected)


def test_answers_wait_for_their_figures_without_their_tokens(
    spec: RunSpec, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a set with hundreds of answers to thousands of rows they would fill the memory of a machine."""
    told: list[Sample] = []
    settle = EvaluationSet.settle

    def watched(self: EvaluationSet, groups: Any, channel: Any, *, first: bool) -> Any:
        if not first:
            told.extend(sample for group in groups for sample in group)
        return settle(self, groups, channel, first=first)

    monkeypatch.setattr(EvaluationSet, "settle", watched)
    with_both = with_sets(spec, GREEDY, LOOSE)
    assert execute(with_both)[0] == ExitCode.DONE
    trained, told[:] = len(told), []
    assert execute(attempt(evaluation(spec, GREEDY, LOOSE), 2, []))[0] == ExitCode.DONE
    assert (trained > 0, len(told)) == (True, 5 * len(tiny.ROWS))
    for sample in told:
        assert sample.rollout.token_ids == [0] * len(sample.rollout.token_ids)
        assert (sample.rollout.log_probs, sample.rollout.top) == ([], None)


def test_a_grader_that_never_works_ends_it_at_the_first_step(spec: RunSpec, execute: Execute) -> None:
    like = tiny.EXACT | {"name": "like", "operation": "like"}
    broken = {"type": "multi", "calculate_output": "1 / (x - x)", "graders": {"x": like}}
    code, recorder = execute(evaluation(spec, GREEDY, grader=broken))
    assert code == ExitCode.GRADER_ERROR
    assert [line for line in recorder.lines if isinstance(line, wire.Progress)] == []
