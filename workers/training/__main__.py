"""``python -m workers.training``: one training process, or the first of several.

With ``--socket PATH`` it connects to the supervisor that listens there, imports everything, waits for ``Start`` and
runs that job, in ``--processes N`` if it is more than this one. With ``--run FILE`` it runs the ``RunSpec`` in ``FILE``
and prints the wire's lines on standard output; torchrun may start several of these.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from workers import processes
from workers.modeling import ranks
from workers.training.processes.channel import Channel, connect, over
from workers.training.processes.followers import Followers
from workers.wire import ExitCode, Failure

PR_SET_PDEATHSIG = 1
SECONDS_FOR_THE_CAUSE = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workers.training", description="Train one model.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--socket", type=Path, help="the supervisor's Unix socket")
    source.add_argument("--run", type=Path, help="a RunSpec as JSON, to run without a supervisor")
    source.add_argument("--follow", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help="how many processes train the model, with --socket")
    given = parser.parse_args(arguments)
    # Weights and rows are for nobody but whoever runs this, whatever the umask of the shell or the supervisor.
    os.umask(0o077)
    processes.keep_priority()
    followers = None
    if given.run:
        channel = Channel(_print, leads=ranks.own() == 0)
        channel.starts.put(given.run)
    else:
        _die_with_the_parent()
        if given.processes > 1:
            followers = Followers(given.processes, given.socket.parent)
        channel = connect(given.socket) if given.socket else over(socket.socket(fileno=given.follow), leads=False)
    _stop_on_signals(channel)
    return run_one_job(channel, followers)


def run_one_job(channel: Channel, followers: Followers | None = None) -> int:
    """Wait for a job with everything imported, and run it; the exit code."""
    if followers:
        followers.watch(channel)
    # Idle OpenMP threads that spin instead of sleeping slow a shared machine down by an order of magnitude. OpenMP
    # reads this when torch is imported, so nothing above this line may import it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pydantic import ValidationError

    from service.jobs.spec import RunSpec
    from workers.bounded import client
    from workers.errors import RunError
    from workers.training.errors import explain
    from workers.training.registry import METHODS
    from workers.training.reporting.clock import Clock

    client.start()
    path = channel.starts.get()
    if path is None:
        return ExitCode.STOPPED
    if followers:
        followers.start(path)
    clock, name = Clock(), None
    try:
        try:
            spec = RunSpec.model_validate_json(path.read_bytes())
        except ValidationError as error:
            # A worker that was upgraded in place and not started anew.
            print("not known here:", *(each["loc"] for each in error.errors()), file=sys.stderr)
            message = "The training process is of another version than its worker, which has to be started anew"
            channel.send(Failure(code="worker_unavailable", message=message))
            return ExitCode.UNAVAILABLE
        name = spec.job.method.type
        return METHODS[name].run(spec, spec.job.method, channel, clock)
    except Exception as error:
        known = explain(error, clock.phase, name, METHODS[name].out_of_memory if name else {})
        if not isinstance(error, RunError):
            # The log may lie on the very disk that is full.
            with contextlib.suppress(OSError):
                traceback.print_exc()
        if known is None and ranks.number() > 1:
            # It may be no more than another rank's end, which has a cause of its own that is about to be told.
            time.sleep(SECONDS_FOR_THE_CAUSE)
        message = f"The training process failed unexpectedly while {clock.phase}: {type(error).__name__}: {error}"
        channel.send(known.failure() if known else Failure(code="internal_error", message=message))
        return known.exit_code if known else ExitCode.BUG


def _die_with_the_parent() -> None:
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
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # Everything worth keeping is on disk; taking torch apart in order would only take time.
    os._exit(code)
