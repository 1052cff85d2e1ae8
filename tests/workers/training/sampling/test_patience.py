"""A grader whose server is away: waited for, then the run ends where it can go on from."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.graders import schemas
from service.graders.settings import GraderSettings, ScoringService
from service.jobs.spec import RunSpec
from tests.workers.graders.servers import Answer, Asked, serve
from tests.workers.training import tiny
from tests.workers.training.sampling.test_filtering import LIKE
from tests.workers.training.tiny import Recorder
from workers import graders, wire
from workers.graders import Grade, GraderSample, TokenUsage, http
from workers.training.sampling import patience
from workers.training.sampling.patience import GraderAwayError, Patient
from workers.training.sampling.rollouts import Rollouts
from workers.wire import ExitCode

MakeSpec = Callable[..., RunSpec]
Execute = Callable[..., tuple[int, Recorder]]
AWAY = Grade(None, error="other_error", detail="The scoring service could not be reached: ConnectError.", away=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_DELAY", "LONGEST_DELAY", "LOOK_SECONDS"):
        monkeypatch.setattr(patience, name, 0.01)
    monkeypatch.setattr(http, "FIRST_DELAY", 0.001)


class Scripted:
    """Grades as ``says`` tells of the number of the call and the sample's text."""

    def __init__(self, says: Callable[[int, str], Grade]) -> None:
        self._says = says
        self.calls: list[list[str]] = []

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        self.calls.append([sample.output_text for sample in samples])
        return [self._says(len(self.calls), sample.output_text) for sample in samples]


def samples(text: str) -> list[GraderSample]:
    return [GraderSample({}, each) for each in text]


def test_a_grader_that_is_there_is_asked_once() -> None:
    recorder, grader = Recorder(), Scripted(lambda call, text: Grade(1.0))
    assert Patient(grader, recorder.channel).grade(samples("ab")) == [Grade(1.0)] * 2
    assert (grader.calls, recorder.lines) == ([["a", "b"]], [])


def test_only_what_was_not_graded_is_graded_again_and_each_keeps_its_grade() -> None:
    grader = Scripted(lambda call, text: AWAY if text == "b" and call < 4 else Grade(float(ord(text))))
    recorder = Recorder()
    grades = Patient(grader, recorder.channel).grade(samples("abc"))
    assert [grade.reward for grade in grades] == [97.0, 98.0, 99.0]
    assert grader.calls == [["a", "b", "c"], ["b"], ["b"], ["b"]]
    away, back = recorder.messages()
    assert away.startswith("The scoring service could not be reached: ConnectError. It is asked again for 5 minutes")
    assert back.startswith("The grader answers again after")


def test_a_failure_that_is_no_outage_is_not_waited_for() -> None:
    failed = Grade(None, error="other_error", detail="no such row")
    grader = Scripted(lambda call, text: failed)
    assert Patient(grader, Recorder().channel).grade(samples("a")) == [failed]
    assert len(grader.calls) == 1


def test_patience_ends_and_then_nothing_more_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.2)
    grader = Scripted(lambda call, text: AWAY)
    patient = Patient(grader, Recorder().channel)
    for _ in range(2):
        with pytest.raises(GraderAwayError, match="could not be reached"):
            patient.grade(samples("ab"))
        asked = len(grader.calls)
    assert asked == len(grader.calls) > 2


def test_a_server_that_grades_some_each_time_is_slow_and_not_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.3)
    order = "abcdefghij"

    def one_more(call: int, text: str) -> Grade:
        time.sleep(0.1)
        return Grade(1.0) if order.index(text) < call else AWAY

    assert Patient(Scripted(one_more), Recorder().channel).grade(samples(order)) == [Grade(1.0)] * 10


def test_who_asks_the_run_to_stop_waits_for_nothing() -> None:
    recorder = Recorder()
    threading.Timer(0.1, recorder.channel.stop).start()
    with pytest.raises(GraderAwayError):
        Patient(Scripted(lambda call, text: AWAY), recorder.channel).grade(samples("a"))


class Outage:
    """A grader that can be taken away, in place of every one that is built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = False
        build = graders.build

        def unreliable(definition: schemas.Grader, settings: Any) -> Any:
            inner = build(definition, settings)
            outage = self

            class Unreliable:
                def grade(self, samples: list[GraderSample]) -> list[Grade]:
                    return [AWAY] * len(samples) if outage.now else inner.grade(samples)

            return Unreliable()

        monkeypatch.setattr(graders, "build", unreliable)

    def at(self, happens: Callable[[wire.Line], bool]) -> Recorder:
        """Begins with the first line for which ``happens``."""

        def on_line(line: wire.Line) -> None:
            self.now = self.now or happens(line)

        return Recorder(on_line)


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.1)
    return Outage(monkeypatch)


def following(spec: RunSpec, checkpoints: list[Path]) -> RunSpec:
    output = spec.output_dir.with_name("attempt-2")
    return spec.model_copy(update={"attempt": 2, "checkpoints": checkpoints, "output_dir": output})


def step(number: int) -> Callable[[wire.Line], bool]:
    return lambda line: isinstance(line, wire.Progress) and line.step == number


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_an_outage_in_a_step_costs_none_before_it(
    make_spec: MakeSpec, execute: Execute, outage: Outage, ahead: int
) -> None:
    asked = {"n_steps": 5, "eval_interval": 4, "max_staleness": ahead}
    _, whole = execute(make_spec("whole", **asked))
    spec = make_spec(**asked)
    code, first = execute(spec, outage.at(step(2)))
    assert (code, first.failure().code) == (ExitCode.GRADER_AWAY, "grader_unavailable")
    assert first.failure().message.startswith("The scoring service could not be reached")
    outage.now = False
    done = max(first.metrics())
    assert [folder.name for folder in first.checkpoints()] == [f"step-{done:06d}"]
    code, second = execute(following(spec, first.checkpoints()))
    assert (code, min(second.metrics())) == (ExitCode.DONE, done + 1)
    together = tiny.without_times(first.metrics() | second.metrics())
    assert together == tiny.without_times(whole.metrics())


def test_an_outage_while_a_step_is_refilled_costs_none_of_its_answers(
    make_spec: MakeSpec, execute: Execute, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"n_steps": 4, "eval_interval": 4, "max_staleness": 2, "grader": LIKE, "group_size": 2}
    asked |= {"filter_groups": True}
    _, whole = execute(make_spec("whole", **asked))
    assert whole.metrics()[3]["troll"]["refills"] > 0
    spec, refill = make_spec(**asked), Rollouts.refill

    def in_an_outage(rollouts: Rollouts, step: int, number: int) -> Any:
        outage.now = step == 3
        return refill(rollouts, step, number)

    with monkeypatch.context() as patched:
        patched.setattr(Rollouts, "refill", in_an_outage)
        code, first = execute(spec)
    assert (code, max(first.metrics())) == (ExitCode.GRADER_AWAY, 2)
    outage.now = False
    _, second = execute(following(spec, first.checkpoints()))
    together = tiny.without_times(first.metrics() | second.metrics())
    assert together == tiny.without_times(whole.metrics())


def test_an_outage_in_an_evaluation_costs_no_step_and_the_evaluation_is_made_up_for(
    make_spec: MakeSpec, execute: Execute, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"n_steps": 4, "eval_interval": 2}
    _, whole = execute(make_spec("whole", **asked))
    spec = make_spec(**asked)
    _begin_with_evaluation(monkeypatch, outage, of_step=2)
    code, first = execute(spec)
    assert (code, first.failure().code) == (ExitCode.GRADER_AWAY, "grader_unavailable")
    assert list(first.metrics()) == [0, 1]
    assert [folder.name for folder in first.checkpoints()] == ["step-000002"]
    # Still away when somebody resumes it too early.
    code, again = execute(following(spec, first.checkpoints()))
    assert (code, again.metrics(), again.checkpoints()) == (ExitCode.GRADER_AWAY, {}, [])
    monkeypatch.undo()
    code, second = execute(following(spec, first.checkpoints()))
    assert (code, list(second.metrics())) == (ExitCode.DONE, [2, 3, 4])
    told = tiny.without_times(first.metrics() | second.metrics())
    assert told == tiny.without_times(whole.metrics())
    result, expected = second.lines[-1], whole.lines[-1]
    assert isinstance(result, wire.Result)
    assert isinstance(expected, wire.Result)
    assert result.metrics == expected.metrics


def _begin_with_evaluation(monkeypatch: pytest.MonkeyPatch, outage: Outage, of_step: int) -> None:
    from workers.training import reinforcement

    evaluate = reinforcement.evaluate

    def then(job: Any) -> Any:
        outage.now = job.trainer.step == of_step
        return evaluate(job)

    monkeypatch.setattr(reinforcement, "evaluate", then)


def test_an_outage_before_the_first_step_is_no_failure(make_spec: MakeSpec, execute: Execute, outage: Outage) -> None:
    spec = make_spec(n_steps=1)
    outage.now = True
    code, first = execute(spec)
    assert (code, first.checkpoints()) == (ExitCode.GRADER_AWAY, [])
    outage.now = False
    assert execute(following(spec, []))[0] == ExitCode.DONE


def test_a_run_asked_to_stop_in_an_outage_stops_with_a_checkpoint(
    make_spec: MakeSpec, execute: Execute, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 60.0)

    def on_line(line: wire.Line) -> None:
        outage.now = outage.now or step(1)(line)
        if isinstance(line, wire.Event) and "asked again" in line.message:
            threading.Thread(target=recorder.channel.stop).start()

    recorder = Recorder(on_line)
    code, _ = execute(make_spec(eval_interval=4), recorder)
    assert code == ExitCode.STOPPED
    assert [folder.name for folder in recorder.checkpoints()] == ["step-000001"]


def test_a_service_that_is_away_for_a_while_costs_nothing_but_time(
    make_spec: MakeSpec, execute: Execute, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    left = 9  # more than one request's own attempts

    def answer(asked: Asked) -> Any:
        nonlocal left
        if len(server.asked) > 3 and left:
            left -= 1
            return Answer(503)
        return {"rewards": [len(each["sample"]["output_text"]) % 3 for each in asked.json["samples"]]}

    with serve(answer) as server:
        allowed = GraderSettings(
            scoring_services=(ScoringService(server.origin, tmp_path / "secret", private_network=True),)
        )
        spec = make_spec(grader={"type": "http", "url": server.origin}, n_steps=2)
        code, recorder = execute(spec.model_copy(update={"graders": allowed}))
    assert (code, left) == (ExitCode.DONE, 0)
    assert any("asked again" in message for message in recorder.messages())
    assert any("answers again" in message for message in recorder.messages())
    errors = [row for data in recorder.metrics().values() for row in data["errors"]["graders"]]
    assert {row["train_other_error_count"] or 0 for row in errors} == {0}


def test_what_judges_used_before_one_was_away_is_counted() -> None:
    used = {"m": TokenUsage(3, 4, 1)}
    half = Grade(None, error="model_grader_server_error", usage=used, sub_usage={"a": TokenUsage(3, 4, 1)}, away=True)
    grader = Scripted(lambda call, text: half if call < 3 else Grade(1.0, usage=used, sub_usage={"b": used["m"]}))
    (grade,) = Patient(grader, Recorder().channel).grade(samples("a"))
    assert grade.usage == {"m": TokenUsage(9, 12, 3)}
    assert grade.sub_usage == {"a": TokenUsage(6, 8, 2), "b": TokenUsage(3, 4, 1)}
    assert not grade.away
