"""What a job measures, to the trackers that it names and to TensorBoard: the supervisor's side.

Nothing here waits for a tracker or fails with it. Rows go to a file that a process of its own reads, one for each kind
of tracker; what such a process says of its runs becomes the job's events, each once; and it is ended when it does not
end.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from service.contracts.flatten import flatten
from service.core import storage
from service.core.db import transaction
from service.jobs import integrations, repository, trackers
from service.jobs.models import Event, Job
from service.jobs.spec import JobSpec
from workers import wire
from workers.tracking.registry import TRACKERS
from workers.tracking.run import End, Header, Row, Run, RunReport
from workers.tracking.tensorboard import EventFile

FINISH_SECONDS = 30.0
"""How long the last rows may take to arrive once the job has ended; it happens at the tracker's pace, not ours."""
HISTORY_PART = 500
"""Steps of earlier attempts that are in memory at a time."""
ENVIRONMENT = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy")

log = logging.getLogger(__name__)


class Tracking:
    """The runs of one attempt, and its file for TensorBoard."""

    def __init__(self, job: Job, folder: Path) -> None:
        """``folder`` is the attempt's. What earlier attempts measured is told again: a run takes what it lacks."""
        self.job_id = job.id
        self._news: list[wire.Event] = []
        self._trackers: list[Tracker] = []
        self._board: EventFile | None = None
        spec = job.as_spec()
        earlier, own = self._open_board(job)
        try:
            self._trackers = [Tracker(job, spec, runs, folder) for runs in _by_kind(self._allowed(job, spec)).values()]
        except OSError as error:
            log.warning("%s: trackers are left out: %s", job.id, error)
        told = self._tell_again()
        if not told:
            self.close("preempted")
        self._remove(earlier if told and self._board is not None else own)

    def _tell_again(self) -> bool:
        """Tell what earlier attempts measured. Whether that is done: a run takes no step behind one that it has."""
        try:
            with transaction("troll_worker") as session:
                for part in repository.metric_events(session, self.job_id, HISTORY_PART):
                    self.record(part)
        except SQLAlchemyError as error:
            log.warning("%s: trackers and the file for TensorBoard are left out: %s", self.job_id, error)
            return False
        return True

    def record(self, events: Sequence[Event]) -> None:
        """Tell the runs the metrics among ``events``, which are committed."""
        rows = [
            Row(step=int(numbers.pop("step")), time=event.created_at.timestamp(), numbers=numbers)
            for event in events
            if event.type == "metrics" and "step" in (numbers := flatten(event.data or {}, "/"))
        ]
        for tracker in self._trackers:
            tracker.write([row.model_dump_json() for row in rows])
        for row in rows:
            self._to_board(row)

    def news(self) -> list[wire.Event]:
        """What the job's followers should know since the last call."""
        told, self._news = self._news, []
        return told + [event for tracker in self._trackers for event in tracker.news()]

    def close(self, end: Literal["succeeded", "failed", "preempted"]) -> None:
        """Let the runs take their last rows and end."""
        for tracker in self._trackers:
            tracker.end(end)
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []
        self._close_board()

    def _allowed(self, job: Job, spec: JobSpec) -> list[tuple[int, integrations.Integration]]:
        """The integrations that the operator still allows, with their places."""
        allowed = []
        for index, each in enumerate(spec.integrations):
            why = trackers.refusal(each, job.organization_id, job.project_id)
            if why is None:
                allowed.append((index, each))
                continue
            log.warning("%s: integration %d is left out: %s", job.id, index, why)
            message = f"Metrics do not go to {TRACKERS[each.type].title}: {why}"
            self._news.append(wire.Event(message=message, level="warn", key=f"{each.type}-{index}-refused"))
        return allowed

    def _open_board(self, job: Job) -> tuple[list[Path], list[Path]]:
        """The files of earlier attempts, and the one that is begun, if it can be."""
        folder = storage.job_dir(job.id) / "tensorboard"
        name = f"events.out.tfevents.{int(job.created_at.timestamp())}.{job.id}.{job.attempt:06d}"
        try:
            folder.mkdir(exist_ok=True)
            earlier = list(folder.iterdir())
            self._board = EventFile(folder / name, job.created_at.timestamp())
        except OSError as error:
            self._board_failed(error)
            return [], []
        return earlier, [folder / name]

    def _remove(self, boards: Sequence[Path]) -> None:
        try:
            for path in boards:
                path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: a file for TensorBoard could not be removed: %s", self.job_id, error)

    def _to_board(self, row: Row) -> None:
        if self._board is None:
            return
        try:
            self._board.add(row.step, row.time, row.numbers)
        except OSError as error:
            self._close_board()
            self._board_failed(error)

    def _close_board(self) -> None:
        if self._board is not None:
            try:
                self._board.close()
            except OSError as error:
                log.warning("%s: the file for TensorBoard could not be completed: %s", self.job_id, error)
        self._board = None

    def _board_failed(self, error: OSError) -> None:
        log.warning("%s: the file for TensorBoard cannot be written: %s", self.job_id, error)
        message = f"The file for TensorBoard cannot be written, and the job goes on without it: {error.strerror}"
        self._news.append(wire.Event(message=message, level="warn", key="tensorboard-failed"))


def _by_kind(
    allowed: list[tuple[int, integrations.Integration]],
) -> dict[str, list[tuple[int, integrations.Integration]]]:
    kinds: dict[str, list[tuple[int, integrations.Integration]]] = {}
    for index, each in allowed:
        kinds.setdefault(each.type, []).append((index, each))
    return kinds


class Tracker:
    """The process of one kind of tracker. A failure is the runs' and not the job's."""

    def __init__(self, job: Job, spec: JobSpec, runs: list[tuple[int, integrations.Integration]], folder: Path) -> None:
        """Raises ``OSError`` where its process cannot be started."""
        self.job_id, self.kind = job.id, runs[0][1].type
        self._places = [index for index, _ in runs]
        self._tracker = TRACKERS[self.kind]
        self._said = b""
        self._failed: set[int] = set()
        files = storage.job_dir(job.id) / self.kind
        files.mkdir(exist_ok=True)
        spool = folder / f"{self.kind}.jsonl"
        self._spool: IO[bytes] = spool.open("wb")
        header = Header(
            runs=[_run(job, index, each) for index, each in runs],
            job_id=job.id,
            model=spec.model,
            config=spec.model_dump(mode="json", exclude={"integrations"}),
            folder=files,
        )
        self.write([header.model_dump_json()])
        with (folder / f"{self.kind}.log").open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.tracking.process", self.kind, str(spool)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(self.kind, files),
                start_new_session=True,
            )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def write(self, lines: list[str]) -> None:
        try:
            self._spool.write("".join(f"{line}\n" for line in lines).encode())
            self._spool.flush()
        except OSError as error:
            log.warning("%s: a row for %s could not be kept: %s", self.job_id, self._tracker.title, error)

    def news(self) -> list[wire.Event]:
        told = self._heard()
        if self._process.poll() is not None:
            error = f"its process ended with {self._process.returncode}"
            gone = [RunReport(index=index, error=error) for index in self._places if index not in self._failed]
            told += [self._failure(each) for each in gone]
        return told

    def end(self, end: Literal["succeeded", "failed", "preempted"]) -> None:
        """Say that no further row comes."""
        self.write([End(end=end).model_dump_json()])
        try:
            self._spool.close()
        except OSError as error:
            log.warning("%s: the last rows for %s could not be kept: %s", self.job_id, self._tracker.title, error)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close(self) -> None:
        """Wait for the process, for which ``end`` was called, but not for long."""
        try:
            self._process.wait(FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            title = self._tracker.title
            log.warning("%s: %s did not take the last rows in %.0f s", self.job_id, title, FINISH_SECONDS)
            self._process.kill()
            self._process.wait()
        self._heard()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _heard(self) -> list[wire.Event]:
        """What the process said since the last call."""
        assert self._process.stdout is not None
        try:
            self._said += self._process.stdout.read() or b""
        except OSError as error:
            log.warning("%s: %s", self.job_id, error)
        *lines, self._said = self._said.split(b"\n")
        reports = [each for line in lines if (each := self._read(line)) is not None]
        return [event for each in reports if (event := self._event(each)) is not None]

    def _read(self, line: bytes) -> RunReport | None:
        try:
            return RunReport.model_validate_json(line)
        except ValidationError:
            title = self._tracker.title
            log.warning("%s: the process for %s sent a line that cannot be read: %.200r", self.job_id, title, line)
            return None

    def _event(self, report: RunReport) -> wire.Event | None:
        if report.error is not None:
            return self._failure(report)
        if report.lost:
            log.warning("%s: integration %d did not get %d rows of metrics", self.job_id, report.index, report.lost)
        if report.url is None:
            return None
        return wire.Event(message=f"{self._tracker.title} run: {report.url}", key=f"{self.kind}-{report.index}")

    def _failure(self, report: RunReport) -> wire.Event:
        self._failed.add(report.index)
        log.warning("%s: %s, integration %d: %s", self.job_id, self._tracker.title, report.index, report.error)
        message = f"{self._tracker.title} failed, and the job goes on without it: {report.error}"
        return wire.Event(message=message, level="warn", key=f"{self.kind}-{report.index}-failed")


def _run(job: Job, index: int, integration: integrations.Integration) -> Run:
    asked = integration.model_dump(mode="json")
    name = asked[integration.type]["name"] or job.id
    return Run(index=index, id=integrations.run_id(job.id, index), name=name, settings=asked)


def environment(kind: str, files: Path) -> dict[str, str]:
    """What a tracker needs of the operator's settings, and nothing of the worker's other secrets."""
    given = {name: value for name, value in os.environ.items() if name in (*ENVIRONMENT, *PROXIES)}
    return given | TRACKERS[kind].environment(files)
