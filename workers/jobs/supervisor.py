"""One claimed attempt from its claim to its outcome: the only owner of a lease.

The training child computes; the supervisor reads its lines, writes them down, renews the lease, listens for what the
owner wants, and decides what the child's end means.
"""

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from sqlalchemy.exc import InterfaceError, OperationalError

from service.contracts import disk
from service.core import broker, storage
from service.core.db import after_commit, transaction
from service.core.errors import DomainError
from service.core.ids import random_text
from service.graders.configured import grader_settings
from service.installation import service as installation
from service.jobs import repository, validation
from service.jobs.models import Job
from service.jobs.spec import RunSpec
from service.jobs.states import Desired
from service.models import service as models
from service.scheduling import repository as scheduling
from service.settings import settings
from workers import wire
from workers.jobs import leftovers
from workers.jobs.child import Child
from workers.jobs.lease import Lease, LeaseLostError, lease_time
from workers.jobs.outcome import Action, decide
from workers.jobs.registration import capacity
from workers.jobs.settle import settle
from workers.jobs.sink import Sink
from workers.tracking.reporter import Tracking

READ_SECONDS = 0.2
ASK_SECONDS = 1.0
EXIT_SECONDS = 30.0
CANCEL_SECONDS = 10.0
RETRY_SECONDS = 1.0
LEFT_SECONDS = 1.0
"""How long a worker waits before it rings for a job that is for others."""
ENDINGS: dict[Action, Literal["succeeded", "failed"]] = {
    Action.SUCCEED: "succeeded",
    Action.FAIL: "failed",
    Action.CANCEL: "failed",
}
"""How a run of Weights & Biases ends; in any other case another attempt goes on with it."""

OUTAGES = (OperationalError, InterfaceError)
"""What PostgreSQL's absence looks like. Any other error would come again with the same lines."""

shutting_down = threading.Event()
log = logging.getLogger(__name__)


class WarmChildren:
    """Keeps one warm child ready, unless the worker is shutting down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._warm: Child | None = None

    def warm_up(self) -> None:
        with self._lock:
            if self._warm is None and not shutting_down.is_set():
                try:
                    self._warm = Child(settings().processes_per_job)
                except OSError as error:
                    log.warning("no training process can be kept waiting: %s", error)

    def take(self) -> Child:
        with self._lock:
            child, self._warm = self._warm, None
        if child is not None and child.alive():
            return child
        if child is not None:
            log.warning("the waiting training process had ended: %s", child.log_tail())
            child.close()
        return Child(settings().processes_per_job)

    def close(self) -> None:
        with self._lock:
            if self._warm is not None:
                self._warm.close()
            self._warm = None


warm_children = WarmChildren()


def run(worker: str) -> None:
    """Claim a job and run one attempt at it. Returns at once when there is none, or when the worker shuts down."""
    if shutting_down.is_set():
        return
    job = _claim(worker)
    if job is None:
        _leave_to_others()
        return
    log.info("%s attempt %d claimed", job.id, job.attempt)
    lease = Lease(job.id, job.attempt)
    try:
        run_path = _prepare(job)
        tracking = Tracking(job, run_path.parent)
        try:
            child = warm_children.take()
        except OSError:
            tracking.close("preempted")
            raise
    except DomainError as error:
        _give_up(
            lease, wire.ExitCode.USER_ERROR, wire.Failure(code=error.code, message=error.message, param=error.param)
        )
        return
    except OSError as error:
        _give_up(lease, *_told_of(error))
        return
    action = Action.RETRY
    try:
        action = _attempt(lease, child, tracking, run_path)
    except LeaseLostError as lost:
        log.warning("lease lost, the attempt ends unrecorded: %s", lost)
    except OSError as error:
        child.kill()
        _give_up(lease, *_told_of(error))
    finally:
        child.kill()
        try:
            shutil.copyfile(child.log_path, run_path.with_name("training.log"))
        except OSError as error:
            log.warning("the log of %s could not be kept: %s", lease.job_id, error)
        child.close()
        warm_children.warm_up()
        tracking.close(ENDINGS.get(action, "preempted"))


def _claim(worker: str) -> Job | None:
    """The job to run; none where the data folder is not the database's, for its files would not be there."""
    with transaction("troll_worker") as session:
        try:
            installation.verify(session)
        except installation.MismatchError as error:
            log.critical("no job is taken: %s", error)
            return None
        if scheduling.is_draining(session, worker):
            return None
        return repository.claim(
            session,
            worker=worker,
            lease=lease_time(),
            max_running=settings().max_running_jobs,
            gpus=settings().processes_per_job,
            capacity=capacity(),
        )


def _leave_to_others() -> None:
    """Ring again for a job that this worker does not take and another may; it may have had the other's doorbell."""
    with transaction("troll_worker") as session:
        job_id = repository.waits_elsewhere(session, capacity())
    if job_id is not None:
        shutting_down.wait(LEFT_SECONDS)
        broker.ring(job_id)


def _told_of(error: OSError) -> tuple[int, wire.Failure]:
    """What the supervisor could not write, as if its child had said so."""
    log.error("an attempt ends because of %s: %s", type(error).__name__, error)
    if disk.is_full(error):
        return wire.ExitCode.NO_ROOM, wire.Failure(code="disk_full", message="The disk is full")
    message = f"The worker could not use the job's folder: {error.strerror or type(error).__name__}"
    return wire.ExitCode.UNAVAILABLE, wire.Failure(code="worker_unavailable", message=message)


def _give_up(lease: Lease, code: int, failure: wire.Failure) -> None:
    """Record the outcome of an attempt that the supervisor itself ends."""
    try:
        _record(lease, code, failure)
    except LeaseLostError as lost:
        log.warning("lease lost, the attempt ends unrecorded: %s", lost)


def _prepare(job: Job) -> Path:
    """Write what the child needs to know into the attempt's folder."""
    spec, folder = job.as_spec(), storage.job_dir(job.id)
    output = folder / f"attempt-{job.attempt}"
    if output.exists():
        # Attempts are counted in the database: it was set back, and this is what came of a later state of it.
        output.rename(output.with_name(f"{output.name}.{random_text(6)}"))
    with transaction("troll_worker") as session:
        model = models.find(session, spec.model, param="model")
        checkpoints = repository.checkpoints(session, job.id)
        left = leftovers.of(session, job)
    leftovers.remove(left)
    output.mkdir(parents=True)
    run = RunSpec(
        job_id=job.id,
        attempt=job.attempt,
        job=spec,
        model_path=model.path,
        training_path=folder / "training.jsonl",
        validation_path=folder / "validation.jsonl" if spec.validation_file else None,
        validation_set_paths=[
            storage.job_data(job.id, validation.data_name(number)) for number in range(len(spec.method.sets))
        ],
        checkpoints=[folder / checkpoint.path for checkpoint in checkpoints[: wire.RESUMABLE]],
        output_dir=output,
        checkpoints_kept=settings().checkpoints_kept,
        rollout_tensor_parallel=settings().rollout_tensor_parallel,
        rollout_memory_share=settings().rollout_memory_share,
        now=job.created_at,
        graders=grader_settings(),
    )
    path = output / "run.json"
    path.write_text(run.model_dump_json(indent=2))
    return path


def _attempt(lease: Lease, child: Child, tracking: Tracking, run_path: Path) -> Action:
    """Follow the child to its end and record what that means. Raises ``LeaseLostError``."""
    sink = Sink(lease.job_id, lease.attempt, tracking.record)
    child.start(run_path)
    asked_at, heard_at, stop_by = 0.0, time.monotonic(), None
    ended = gave_up = False
    while not ended:
        lines, ended = child.read(READ_SECONDS)
        now = time.monotonic()
        if lines:
            heard_at = now
        for line in lines:
            _take(sink, line)
        for event in tracking.news():
            sink.add(event)
        try:
            if sink.is_due():
                sink.flush()
            lease.renew_if_due()
            if now - asked_at >= ASK_SECONDS:
                asked_at = now
                grace = _grace(lease.desired(), is_over=lease.is_over)
                if grace is not None and stop_by is None:
                    child.stop()
                if grace is not None:
                    stop_by = min(stop_by or now + grace, now + grace)
        except OUTAGES as error:
            log.warning("%s: the database did not answer, lines wait: %s", lease.job_id, error)
            lease.check_time()
            time.sleep(RETRY_SECONDS)
        if stop_by is not None and now > stop_by:
            log.warning("%s did not stop in time and is killed", lease.job_id)
            gave_up = True
            child.kill()
        if now - heard_at > settings().progress_timeout_seconds:
            log.warning("%s said nothing for %.0f s and is killed", lease.job_id, now - heard_at)
            child.kill()
    code = child.wait(EXIT_SECONDS)
    if code not in (wire.ExitCode.DONE, wire.ExitCode.STOPPED):
        log.warning("%s attempt %d ended with %d: %s", lease.job_id, lease.attempt, code, child.log_tail())
    # A child that was killed because it did not stop in time has done nothing wrong.
    return _record(lease, wire.ExitCode.STOPPED if gave_up and code < 0 else code, sink.failure, sink)


def _grace(desired: Desired, *, is_over: bool) -> float | None:
    """How long the child may take to stop; None when it need not. Nothing is worth saving of a cancelled job."""
    if desired is Desired.CANCEL:
        return min(CANCEL_SECONDS, settings().stop_grace_seconds)
    stops = is_over or shutting_down.is_set() or desired is Desired.PAUSE
    return settings().stop_grace_seconds if stops else None


def _take(sink: Sink, raw: bytes) -> None:
    try:
        sink.add(wire.parse(raw))
    except ValidationError:
        log.exception("%s: the training process sent a line that cannot be read: %.200r", sink.job_id, raw)


def _record(lease: Lease, code: int, failure: wire.Failure | None, sink: Sink | None = None) -> Action:
    """Write the last lines and the outcome, however long PostgreSQL is away while the lease lasts.

    Raises ``LeaseLostError``, and ``OSError`` where the disk has no room for what the outcome brings along.
    """
    while True:
        try:
            if sink is not None:
                sink.flush()
            return _settle(lease, code, failure, sink.result if sink else None)
        except OUTAGES as error:
            log.warning("%s: the outcome could not be written yet: %s", lease.job_id, error)
            lease.check_time()
            time.sleep(RETRY_SECONDS)


def _settle(
    lease: Lease, code: int, failure: wire.Failure | None, result: wire.Result | wire.Evaluated | None
) -> Action:
    with transaction("troll_worker") as session:
        job = repository.fenced(session, lease.job_id, lease.attempt)
        if job is None:
            raise LeaseLostError(f"{lease.job_id} attempt {lease.attempt}")
        repository.count_time(session, job)
        outcome = decide(
            exit_code=code,
            has_result=result is not None,
            desired=Desired(job.desired),
            strikes=job.strikes,
            max_strikes=settings().max_strikes,
            failure=failure,
        )
        settle(session, job, outcome, result)
        if outcome.action in (*ENDINGS, Action.PAUSE):
            left = leftovers.of(session, job)
            after_commit(session, lambda: leftovers.remove(left))
            # An evaluation's answers go when it has ended.
            left += storage.answers(job.id) if outcome.action in ENDINGS else []
            job.stored_bytes = leftovers.written_bytes(job) - storage.bytes_in(left)
    return outcome.action
