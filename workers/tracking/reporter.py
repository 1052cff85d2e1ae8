"""What a job measures, to Weights & Biases: the supervisor's side of ``workers.tracking.wandb_runs``.

Nothing here waits for W&B or fails with it. Rows go to a file that a process of its own reads; what that process says
of its runs becomes the job's events, each once; and it is ended when it does not end.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from service.core import storage
from service.core.db import transaction
from service.jobs import integrations, repository
from service.jobs.models import Event, Job
from service.jobs.spec import JobSpec
from service.settings import settings
from workers import wire
from workers.flatten import flatten
from workers.tracking.wandb_runs import End, Header, Run, RunReport

FINISH_SECONDS = 30.0
"""How long the last rows may take to arrive once the job has ended; it happens at W&B's pace, not ours."""
ENVIRONMENT = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy")

log = logging.getLogger(__name__)


class Tracking:
    """The runs of one attempt. Without integrations it does nothing."""

    def __init__(self, job: Job, folder: Path) -> None:
        """``folder`` is the attempt's. What earlier attempts measured is told again: a run takes what it lacks."""
        self.job_id = job.id
        self._process: subprocess.Popen[bytes] | None = None
        self._spool: IO[bytes] | None = None
        self._said = b""
        self._failed: set[int] = set()
        spec = job.as_spec()
        self._count = len(spec.integrations)
        if not spec.integrations:
            return
        if settings().wandb_mode == "off":
            log.warning("%s: Weights & Biases was turned off since the job was taken", job.id)
            return
        try:
            self._start(job, spec, folder)
        except (OSError, SQLAlchemyError) as error:
            log.warning("%s: Weights & Biases is left out: %s", job.id, error)

    def record(self, events: Sequence[Event]) -> None:
        """Tell the runs the metrics among ``events``, which are committed."""
        rows = [flatten(event.data or {}, "/") for event in events if event.type == "metrics"]
        self._write([json.dumps(row) for row in rows if "step" in row])

    def news(self) -> list[wire.Event]:
        """What the job's followers should know since the last call."""
        told = self._heard()
        if self._process is not None and self._process.poll() is not None:
            error = f"its process ended with {self._process.returncode}"
            gone = [RunReport(index=index, error=error) for index in range(self._count) if index not in self._failed]
            told += [self._failure(each) for each in gone]
        return told

    def _heard(self) -> list[wire.Event]:
        """What the process said since the last call."""
        if self._process is None or self._process.stdout is None:
            return []
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
            log.warning(
                "%s: the process for Weights & Biases sent a line that cannot be read: %.200r", self.job_id, line
            )
            return None

    def close(self, end: Literal["succeeded", "failed", "preempted"]) -> None:
        """Let the runs take their last rows and end."""
        self._write([End(end=end).model_dump_json()])
        if self._spool is not None:
            try:
                self._spool.close()
            except OSError as error:
                log.warning("%s: the last rows for Weights & Biases could not be kept: %s", self.job_id, error)
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("%s: Weights & Biases did not take the last rows in %.0f s", self.job_id, FINISH_SECONDS)
            self._process.kill()
            self._process.wait()
        self._heard()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    def _start(self, job: Job, spec: JobSpec, folder: Path) -> None:
        runs = [
            Run(
                index=index,
                id=integrations.run_id(job.id, index),
                project=each.wandb.project,
                entity=each.wandb.entity,
                name=each.wandb.name or job.id,
                tags=integrations.tags(each, spec.model, job.id),
            )
            for index, each in enumerate(spec.integrations)
        ]
        config = spec.model_dump(mode="json", exclude={"integrations"})
        files = storage.job_dir(job.id) / "wandb"
        files.mkdir(exist_ok=True)
        with transaction("troll_worker") as session:
            history = repository.metric_events(session, job.id)
        self._spool = (folder / "wandb.jsonl").open("wb")
        self._write([Header(runs=runs, config=config, folder=files).model_dump_json()])
        self.record(history)
        with (folder / "wandb.log").open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.tracking.wandb_runs", str(folder / "wandb.jsonl")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(files),
                start_new_session=True,
            )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def _write(self, lines: list[str]) -> None:
        if self._spool is None or self._spool.closed:
            return
        try:
            self._spool.write("".join(f"{line}\n" for line in lines).encode())
            self._spool.flush()
        except OSError as error:
            log.warning("%s: a row for Weights & Biases could not be kept: %s", self.job_id, error)

    def _event(self, report: RunReport) -> wire.Event | None:
        if report.error is not None:
            return self._failure(report)
        if report.lost:
            log.warning("%s: integration %d did not get %d rows of metrics", self.job_id, report.index, report.lost)
        if report.url is None:
            return None
        return wire.Event(message=f"Weights & Biases run: {report.url}", key=f"wandb-{report.index}")

    def _failure(self, report: RunReport) -> wire.Event:
        self._failed.add(report.index)
        log.warning("%s: Weights & Biases, integration %d: %s", self.job_id, report.index, report.error)
        message = f"Weights & Biases failed, and the job goes on without it: {report.error}"
        return wire.Event(message=message, level="warn", key=f"wandb-{report.index}-failed")


def _environment(files: Path) -> dict[str, str]:
    """The library's settings, and nothing of the worker's secrets but its key."""
    ours = settings()
    given = {name: value for name, value in os.environ.items() if name in (*ENVIRONMENT, *PROXIES)}
    given |= {"WANDB_MODE": ours.wandb_mode, "WANDB_ERROR_REPORTING": "false"}
    given |= {f"WANDB_{kind}_DIR": str(files / ".library") for kind in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    if ours.wandb_api_key is not None:
        given["WANDB_API_KEY"] = ours.wandb_api_key.get_secret_value()
    if ours.wandb_base_url is not None:
        given["WANDB_BASE_URL"] = ours.wandb_base_url
    return given
