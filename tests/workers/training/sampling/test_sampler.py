"""What samples gives its tokens the probabilities that they are trained with."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from service.jobs.spec import RunSpec
from tests.workers.training import tiny
from tests.workers.training.tiny import Recorder
from workers.rollouts.engine import Rollout
from workers.rollouts.errors import EngineDiedError
from workers.rollouts.registry import ENGINES
from workers.rollouts.transformers import TransformersEngine
from workers.training import preflight
from workers.training.optim import update
from workers.wire import ExitCode


def test_a_model_that_samples_otherwise_than_it_is_trained_is_refused_before_the_first_step(
    tmp_path: Path,
    make_spec: Callable[..., RunSpec],
    execute: Callable[..., tuple[int, Recorder]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts of several lengths are padded, and rwkv's state reads the padding; here the engine is made to do it."""
    spec = make_spec(model_path=tiny.save(tmp_path / "model", "rwkv"), n_steps=1)
    assert execute(spec)[0] == ExitCode.DONE
    monkeypatch.setattr(TransformersEngine, "_leaves_out_padding", lambda self: True)
    code, recorder = execute(spec)
    assert code == ExitCode.USER_ERROR
    assert recorder.failure().code == "weights_out_of_sync"
    assert recorder.metrics() == {}


class Shared(TransformersEngine):
    """An engine as one that shares a GPU with the trainer, and everything that is asked of it and of the trainer."""

    calls: ClassVar[list[str]] = []

    def stream(self, *asked: Any) -> Generator[tuple[int, list[Rollout]]]:
        assert not self.asleep
        self.calls.append("sample")
        return super().stream(*asked)

    def push(self, *given: Any) -> None:
        assert not self.asleep
        self.calls.append("push")
        super().push(*given)

    def sleep(self) -> None:
        self.calls.append("sleep")
        self.asleep = True

    def wake(self) -> None:
        if self.asleep:
            self.calls.append("wake")
        self.asleep = False


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> type[Shared]:
    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def note(*given: Any, **named: Any) -> Any:
            Shared.calls.append(name)
            return call(*given, **named)

        return note

    monkeypatch.setattr(Shared, "calls", [])
    monkeypatch.setitem(ENGINES, "transformers", Shared)
    monkeypatch.setattr(preflight, "worst_case_step", noted("try", preflight.worst_case_step))
    monkeypatch.setattr(update, "update_policy", noted("train", update.update_policy))
    return Shared


def test_an_engine_sleeps_while_the_trainer_trains_and_has_the_weights_when_it_samples(
    shared: type[Shared], make_spec: Callable[..., RunSpec], execute: Callable[..., tuple[int, Recorder]]
) -> None:
    assert execute(make_spec(n_steps=2, eval_interval=2))[0] == ExitCode.DONE
    start, step = ["push", "sample"], ["sample", "sleep", "train", "wake", "push"]
    base = ["sample", "sleep", "try", "wake", "push"]
    assert shared.calls == [*start, *base, *step, *step, "sample"]


def test_an_engine_that_samples_ahead_is_not_put_to_sleep(
    shared: type[Shared], make_spec: Callable[..., RunSpec], execute: Callable[..., tuple[int, Recorder]]
) -> None:
    assert execute(make_spec(n_steps=2, eval_interval=2, max_staleness=1))[0] == ExitCode.DONE
    assert shared.calls.count("train") == 2
    assert not {"sleep", "wake"} & set(shared.calls)


@pytest.mark.parametrize("call", ["sleep", "wake"])
def test_memory_that_cannot_be_handed_over_ends_the_run_and_says_why(
    shared: type[Shared],
    make_spec: Callable[..., RunSpec],
    execute: Callable[..., tuple[int, Recorder]],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    def fail(engine: Shared) -> None:
        if "sample" in engine.calls:
            raise EngineDiedError("vLLM could not hand its memory over.")

    monkeypatch.setattr(shared, call, fail)
    code, recorder = execute(make_spec(n_steps=1))
    assert (code, recorder.failure().code) == (ExitCode.UNAVAILABLE, "engine_unavailable")
    assert recorder.failure().message == "vLLM could not hand its memory over."
