"""``python -m workers.training``: one training process.

With ``--socket PATH`` it connects to the supervisor that listens there, imports everything, waits for ``Start`` and
runs that job. With ``--run FILE`` it runs the ``RunSpec`` in ``FILE`` and prints the wire's lines on standard output.
"""

import argparse
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from workers.training.channel import Channel, connect
from workers.wire import ExitCode, Failure

PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workers.training", description="Train one model.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--socket", type=Path, help="the supervisor's Unix socket")
    source.add_argument("--run", type=Path, help="a RunSpec as JSON, to run without a supervisor")
    given = parser.parse_args(arguments)
    if given.socket:
        _die_with_the_supervisor()
        channel = connect(given.socket)
    else:
        channel = Channel(_print)
        channel.starts.put(given.run)
    _stop_on_signals(channel)
    return train(channel)


def train(channel: Channel) -> int:
    """Wait for a job with everything imported, and run it; the exit code."""
    # Idle OpenMP threads that spin instead of sleeping slow a shared machine down by an order of magnitude. OpenMP
    # reads this when torch is imported, so nothing above this line may import it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from service.jobs.spec import RunSpec, Supervised
    from workers.training import loop, supervised
    from workers.training.clock import Clock
    from workers.training.errors import RunError, explain

    path = channel.starts.get()
    if path is None:
        return ExitCode.STOPPED
    clock, kind = Clock(), "reinforcement"
    try:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes != 1:
            raise RunError("unsupported_world_size", f"A job runs in one process, but {processes} were started.")
        spec = RunSpec.model_validate_json(path.read_bytes())
        method = spec.job.method
        kind = method.type
        if isinstance(method, Supervised):
            return supervised.run(spec, method, channel, clock)
        return loop.run(spec, method, channel, clock)
    except Exception as error:
        known = explain(error, clock.phase, kind)
        if not isinstance(error, RunError):
            traceback.print_exc()
        message = f"The training process failed unexpectedly while {clock.phase}: {type(error).__name__}: {error}"
        channel.send(known.failure() if known else Failure(code="internal_error", message=message))
        return known.exit_code if known else ExitCode.BUG


def _die_with_the_supervisor() -> None:
    """On Linux the kernel ends this process when its parent ends, even if no thread here gets to notice."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop_on_signals(channel: Channel) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # The second one ends the process.
        channel.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _print(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything worth keeping is on disk; taking torch apart in order would only take time.
    os._exit(code)
