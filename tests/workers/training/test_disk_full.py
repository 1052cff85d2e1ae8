"""A disk that fills up while a checkpoint or the final model is written, at whatever byte."""

from collections.abc import Callable
from pathlib import Path

import pytest

from service.jobs.spec import RunSpec
from tests.disks import empty, fill, small_disk
from tests.workers.training.tiny import Recorder
from workers import wire
from workers.wire import ExitCode

ROOM = 8 * 1024**2


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("when", ["step-1", "checkpoint-1"])
def test_a_full_disk_is_told_as_one_leaves_nothing_half_made_and_the_run_goes_on(
    make_spec: Callable[..., RunSpec],
    execute: Callable[..., tuple[int, Recorder]],
    tmp_path: Path,
    share: float,
    when: str,
) -> None:
    """``share`` of what the next writing takes is free."""
    spec = make_spec(n_steps=1, eval_interval=1)
    _, whole = execute(spec)
    written = spec.output_dir / ("checkpoints/step-000001" if when == "step-1" else "model")
    needed = sum(-(-path.stat().st_size // 4096) * 4096 for path in written.rglob("*") if path.is_file())
    with small_disk(tmp_path / "small", ROOM) as disk:

        def on_line(line: wire.Line) -> None:
            if isinstance(line, wire.Event) and line.key == when:
                fill(disk, leave=int(needed * share) // 4096 * 4096)

        first = spec.model_copy(update={"output_dir": disk / "attempt-1"})
        code, recorder = execute(first, Recorder(on_line))
        assert (code, recorder.failure().code) == (ExitCode.NO_ROOM, "disk_full")
        kept = recorder.checkpoints()
        assert [*first.output_dir.glob("checkpoints/*")] == kept
        assert [*first.output_dir.glob("*model*")] == []
        empty(disk)
        second = spec.model_copy(update={"output_dir": disk / "attempt-2", "attempt": 2, "checkpoints": kept})
        code, recorder = execute(second)
    assert code == ExitCode.DONE
    result, expected = recorder.lines[-1], whole.lines[-1]
    assert isinstance(result, wire.Result)
    assert isinstance(expected, wire.Result)
    assert result.metrics == expected.metrics
