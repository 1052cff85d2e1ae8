"""A process that reports one attempt's metrics to one tracker: ``python -m workers.tracking.process KIND SPOOL``.

It stands beside the supervisor, which writes what is to be reported into a file, the spool, and never waits: whatever
becomes of the tracker, of its library or of this process, the job goes on. The first line of the spool is a ``Header``,
each further one a ``Row``, the last one an ``End``. The end of standard input says that no more lines come. On standard
output it says, one JSON object a line, where a run is shown and what went wrong.
"""

import json
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.tracking.registry import TRACKERS
from workers.tracking.run import End, Header, Row, Run, RunReport, TrackedRun

POLL_SECONDS = 0.2


def report(kind: type[TrackedRun], spool: Path) -> None:
    """Report what ``spool`` holds and what is still written to it."""
    lines = follow(spool)
    first = next(line for line in lines if line is not None)
    header = Header.model_validate_json(first)
    reporters = [Reporter(kind, run, header) for run in header.runs]
    end = End(end="preempted")
    for line in lines:
        if line is not None and b'"end"' in line and "end" in json.loads(line):
            end = End.model_validate_json(line)
            break
        for reporter in reporters:
            reporter.take(None if line is None else Row.model_validate_json(line))
    for reporter in reporters:
        reporter.finish(end)


class Reporter:
    """One run. What a library or server does is not ours to foresee: the run is given up then, and that is said."""

    def __init__(self, kind: type[TrackedRun], run: Run, header: Header) -> None:
        self.index, self.lost = run.index, 0
        self._run: TrackedRun | None = None
        with self._giving_up():
            self._run = kind(run, header)
            _send(RunReport(index=self.index, url=self._run.url))

    def take(self, row: Row | None) -> None:
        """Report ``row``; None says that there is none for now."""
        if self._run is None:
            self.lost += row is not None
            return
        with self._giving_up():
            if row is None:
                self._run.flush()
            # A run that goes on knows what it has.
            elif row.step >= self._run.step:
                self._run.log(row)

    def finish(self, end: End) -> None:
        if self.lost:
            _send(RunReport(index=self.index, lost=self.lost))
        if self._run is None:
            return
        with self._giving_up():
            self._run.finish(end)

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._run = None
            _send(RunReport(index=self.index, error=f"{type(error).__name__}: {error}"[:500]))


def follow(spool: Path) -> Iterator[bytes | None]:
    """The whole lines of ``spool`` as they are written, until standard input ends and none is left.

    None says that there is no line for now.
    """
    open_ended = True
    with spool.open("rb") as file:
        rest = b""
        while True:
            rest += file.readline()
            if rest.endswith(b"\n"):
                yield rest
                rest = b""
                continue
            if not open_ended:
                return
            yield None
            if select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
                # The supervisor says nothing here, so this is its end: one more look for what it wrote before.
                open_ended = False


def _send(line: RunReport) -> None:
    _channel.write(line.model_dump_json() + "\n")
    _channel.flush()


if __name__ == "__main__":
    # What libraries print is for the log.
    _channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    report(TRACKERS[sys.argv[1]], Path(sys.argv[2]))
