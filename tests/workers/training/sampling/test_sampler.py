"""What samples gives its tokens the probabilities that they are trained with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from service.jobs.spec import RunSpec
from tests.workers.training import tiny
from tests.workers.training.tiny import Recorder
from workers.rollouts.transformers import TransformersEngine
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
