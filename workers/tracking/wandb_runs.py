"""A process that reports one attempt's metrics to Weights & Biases: ``python -m workers.tracking.wandb_runs SPOOL``.

It stands beside the supervisor, which writes what is to be reported into a file, the spool, and never waits: whatever
becomes of W&B, of its library or of this process, the job goes on. The first line of the spool is a ``Header``, each
further one a row of numbers with its ``step``, the last one an ``End``. The end of standard input says that no more
lines come. On standard output it says, one JSON object a line, where a run is shown and what went wrong.
"""

import json
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

POLL_SECONDS = 0.2
INIT_SECONDS = 30.0


class Run(BaseModel):
    """One run of a project. ``index`` is the integration's place in the job."""

    model_config = ConfigDict(frozen=True)

    index: int
    id: str
    project: str
    entity: str | None
    name: str
    tags: list[str]


class Header(BaseModel):
    model_config = ConfigDict(frozen=True)

    runs: list[Run]
    config: dict[str, Any]
    folder: Path
    """Where the library keeps its files; in offline mode these are the result."""


class End(BaseModel):
    """How the attempt ended: for good, or ``preempted``: another one will go on with the same run."""

    model_config = ConfigDict(frozen=True)

    end: Literal["succeeded", "failed", "preempted"]


class RunReport(BaseModel):
    """A line of standard output, about the run ``index``."""

    model_config = ConfigDict(frozen=True)

    index: int
    url: str | None = None
    error: str | None = None
    lost: int = 0
    """Rows that it did not take because it had failed."""


def report(spool: Path) -> None:
    """Report what ``spool`` holds and what is still written to it."""
    lines = follow(spool)
    header = Header.model_validate_json(next(lines))
    reporters = [Reporter(run, header) for run in header.runs]
    end = End(end="preempted")
    for line in lines:
        row = json.loads(line)
        if "end" in row:
            end = End.model_validate(row)
            break
        for reporter in reporters:
            reporter.take(row)
    for reporter in reporters:
        reporter.finish(end)


class Reporter:
    """One run. What the library raises is not ours to foresee: the run is given up then, and that is said."""

    def __init__(self, run: Run, header: Header) -> None:
        self.index, self.lost = run.index, 0
        self._run: Any = None
        with self._giving_up():
            self._run = _start(run, header)
            _send(RunReport(index=self.index, url=self._run.url))

    def take(self, row: dict[str, Any]) -> None:
        if self._run is None:
            self.lost += 1
            return
        # A run that goes on knows what it has; a row that it has already would be refused.
        if row["step"] >= self._run.step:
            with self._giving_up():
                self._run.log(row, step=row["step"])

    def finish(self, end: End) -> None:
        if self.lost:
            _send(RunReport(index=self.index, lost=self.lost))
        if self._run is None:
            return
        with self._giving_up():
            if end.end == "preempted":
                self._run.mark_preempting()
            self._run.finish(exit_code=0 if end.end == "succeeded" else 1)

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._run = None
            _send(RunReport(index=self.index, error=f"{type(error).__name__}: {error}"[:500]))


def follow(spool: Path) -> Iterator[bytes]:
    """The whole lines of ``spool``, as they are written, until standard input ends and none is left."""
    open_ended = True
    with spool.open("rb") as file:
        rest = b""
        while True:
            rest += file.readline()
            if rest.endswith(b"\n"):
                yield rest
                rest = b""
            elif not open_ended:
                return
            elif select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
                # The supervisor says nothing here, so this is its end: one more look for what it wrote before.
                open_ended = False


def _start(run: Run, header: Header) -> Any:
    """W&B's run. Raises whatever the library does."""
    import wandb

    # Nothing goes there but what the job measured: no console, code, repository, hardware or machine.
    quiet = wandb.Settings(
        init_timeout=INIT_SECONDS,
        console="off",
        disable_code=True,
        disable_git=True,
        save_code=False,
        silent=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    return wandb.init(
        id=run.id,
        project=run.project,
        entity=run.entity,
        name=run.name,
        tags=run.tags,
        config=header.config,
        dir=str(header.folder),
        resume="allow",
        reinit="create_new",
        settings=quiet,
    )


def _send(line: RunReport) -> None:
    _channel.write(line.model_dump_json() + "\n")
    _channel.flush()


if __name__ == "__main__":
    # What the library prints is for the log.
    _channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    report(Path(sys.argv[1]))
