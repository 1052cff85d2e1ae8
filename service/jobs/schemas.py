"""Fine-tuning jobs, events and checkpoints on the wire."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from service.contracts.spelling import Spelled
from service.core.openapi import ShownAs
from service.core.pagination import Listed
from service.jobs.curves import Curves
from service.jobs.integrations import MAX_INTEGRATIONS, Integration, IntegrationObject, shown
from service.jobs.methods.registry import EventData
from service.jobs.methods.schemas import Method, RequestedMethod, method_object
from service.jobs.models import Checkpoint, Event, Job
from service.jobs.states import TERMINAL, Desired, Status
from service.jobs.stored import UnreadableError, with_current_code

SUFFIX_CHARACTERS = "the letters A to Z and a to z, digits, '.', '_' and '-', and no spaces"
Suffix = Annotated[str, StringConstraints(min_length=1, max_length=64), Spelled("[A-Za-z0-9._-]*", SUFFIX_CHARACTERS)]
MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]


class CreateJob(BaseModel):
    """The body of ``POST /v1/fine_tuning/jobs``. ``method`` is checked by ``service.submission.request``."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=255)
    training_file: str | None = Field(
        None, min_length=1, max_length=255, description="Needed by every method but evaluation, which has none."
    )
    validation_file: str | None = Field(None, max_length=255)
    method: RequestedMethod | None = Field(
        None,
        description="Supervised fine-tuning where it is left out.",
        examples=[
            {
                "type": "reinforcement",
                "reinforcement": {
                    "grader": {
                        "type": "string_check",
                        "name": "exact",
                        "operation": "eq",
                        "input": "{{sample.output_text}}",
                        "reference": "{{item.answer}}",
                    },
                    "hyperparameters": {"batch_size": 32, "kl_bound": 0.05},
                },
            }
        ],
    )
    hyperparameters: dict[str, Any] | None = Field(
        None,
        description="OpenAI's older place for the method's hyperparameters, which win over these.",
        json_schema_extra={"deprecated": True},
    )
    suffix: Suffix | None = None
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    metadata: Metadata | None = None
    priority: int = Field(
        0, ge=-100, le=100, description="Of your organization's queued jobs those of the highest priority start first."
    )
    integrations: list[Integration] | None = Field(None, max_length=MAX_INTEGRATIONS)


class JobError(BaseModel):
    code: str
    message: str
    param: str | None = None


class CommonHyperparameters(BaseModel):
    """Those that OpenAI's API once took outside of ``method``; null where ``method`` is."""

    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    n_epochs: int | None = None


class Progress(BaseModel):
    """This service's own addition to the job object."""

    step: int
    total_steps: int
    attempt: int
    desired: str
    priority: int
    gpu_seconds: float = Field(description="GPU time that all attempts have used so far.")
    estimated_gpu_seconds: float | None = Field(
        description="What it may use in all, by what your organization's jobs like it used; null where there is none."
    )
    queue_position: int | None = Field(description="1 is taken next. Of a queued job, as of some seconds ago.")
    estimated_start: int | None = Field(description="When a queued job may start, by what jobs usually take.")
    waits_for: str | None = Field(description="What has to be there before a worker can take a queued job.")
    events_removed_at: int | None = Field(description="When its events were removed, long after its end.")

    @classmethod
    def of(cls, row: Job) -> "Progress":
        queued = row.status == Status.QUEUED
        start = row.estimated_start if queued else None
        return cls(
            step=row.step,
            total_steps=row.total_steps,
            attempt=row.attempt,
            desired=row.desired,
            priority=row.priority,
            gpu_seconds=round(row.gpu_seconds, 3),
            estimated_gpu_seconds=(None if row.estimated_gpu_seconds is None else round(row.estimated_gpu_seconds, 3)),
            queue_position=row.queue_position if queued else None,
            estimated_start=int(start.timestamp()) if start else None,
            waits_for=row.waits_for if queued else None,
            events_removed_at=int(row.events_removed_at.timestamp()) if row.events_removed_at else None,
        )


class JobObject(Listed):
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: str
    training_file: str = Field(description="Empty where the job only evaluates.")
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    error: JobError | None
    seed: int
    hyperparameters: CommonHyperparameters
    method: Method | None = Field(
        description="Null where this server cannot read what is stored of the job, and `error` says why."
    )
    metadata: dict[str, Any] | None
    integrations: list[IntegrationObject]
    user_provided_suffix: str | None
    progress: Progress

    @classmethod
    def of(cls, row: Job) -> "JobObject":
        try:
            spec = row.as_spec()
        except UnreadableError as error:
            return cls._unread(row, error)
        common = {name: getattr(spec.method.hyperparameters, name, None) for name in CommonHyperparameters.model_fields}
        return cls(
            **_of_columns(row),
            error=_error(row.error),
            seed=spec.seed,
            hyperparameters=CommonHyperparameters(**common),
            method=method_object(spec.method),
            integrations=[shown(each, row.id, n) for n, each in enumerate(spec.integrations)],
            user_provided_suffix=spec.suffix,
        )

    @classmethod
    def _unread(cls, row: Job, error: UnreadableError) -> "JobObject":
        """A job whose specification cannot be read here: what its columns say, and what can be picked out of it."""
        seed, suffix = (row.spec.get("seed"), row.spec.get("suffix")) if isinstance(row.spec, dict) else (None, None)
        message = (
            f"What this job is to do cannot be read by this server: {error} It is left alone until a server and "
            "workers that can read it are here. It can be cancelled."
        )
        return cls(
            **_of_columns(row),
            error=_error(row.error) or JobError(code="unreadable_specification", message=message),
            seed=seed if isinstance(seed, int) else 0,
            hyperparameters=CommonHyperparameters(),
            method=None,
            integrations=[],
            user_provided_suffix=suffix if isinstance(suffix, str) else None,
        )

    @classmethod
    def as_wanted(cls, row: Job) -> "JobObject":
        """The job with the status that it will have when its worker has heard what is wanted of it."""
        coming = {Desired.CANCEL: Status.CANCELLED, Desired.PAUSE: Status.PAUSED}
        status = row.status if row.status in TERMINAL else coming.get(Desired(row.desired), row.status)
        return cls.of(row).model_copy(update={"status": str(status)})


def _of_columns(row: Job) -> dict[str, Any]:
    """The fields of a job's object that its specification does not decide."""
    return {
        "id": row.id,
        "created_at": int(row.created_at.timestamp()),
        "finished_at": int(row.finished_at.timestamp()) if row.finished_at else None,
        "estimated_finish": int(row.estimated_finish.timestamp()) if row.estimated_finish else None,
        "model": row.model,
        "fine_tuned_model": row.fine_tuned_model,
        "organization_id": row.organization_id,
        "status": row.status,
        "training_file": row.training_file,
        "validation_file": row.validation_file,
        "result_files": row.result_files if isinstance(row.result_files, list) else [],
        "trained_tokens": row.trained_tokens,
        "metadata": row.meta if isinstance(row.meta, dict) else None,
        "progress": Progress.of(row),
    }


def _error(stored: Any) -> JobError | None:
    if stored is None:
        return None
    try:
        return JobError.model_validate(with_current_code(stored))
    except ValidationError:
        return JobError(code="unreadable_error", message="Why this job failed cannot be read by this server.")


class EventObject(Listed):
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: Annotated[dict[str, Any] | None, ShownAs(EventData)]
    seq: int = Field(description="1, 2, 3, … within the job, without gap. Resume a stream with `?after=seq`.")

    @classmethod
    def of(cls, row: Event) -> "EventObject":
        return cls(
            id=event_id(row.job_id, row.seq),
            created_at=int(row.created_at.timestamp()),
            level=row.level,
            message=row.message,
            type=row.type,
            # Whatever a newer worker may have told, the page of the others is answered.
            data=with_current_code(row.data) if row.data is None or isinstance(row.data, dict) else {"value": row.data},
            seq=row.seq,
        )


def event_id(job_id: str, seq: int) -> str:
    return f"ftevent-{job_id.removeprefix('ftjob-')}-{seq}"


def event_seq(job_id: str, after: str) -> int | None:
    """The ``seq`` that ``after`` means: an event's id, or a bare number. None when it is neither."""
    digits = after.removeprefix(event_id(job_id, 0)[:-1])
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 18 else None


class CheckpointMetrics(BaseModel):
    """OpenAI's are those of supervised jobs and null for reinforcement, whose rewards and the rest are extra keys."""

    model_config = ConfigDict(extra="allow")

    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class CheckpointObject(Listed):
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics

    @classmethod
    def of(cls, row: Checkpoint) -> "CheckpointObject":
        stored = row.metrics if isinstance(row.metrics, dict) else {}
        # Of OpenAI's names only numbers are shown, whatever a newer worker may have written.
        metrics = {
            name: value
            for name, value in stored.items()
            if name not in CheckpointMetrics.model_fields or isinstance(value, int | float)
        }
        return cls(
            id=row.id,
            created_at=int(row.created_at.timestamp()),
            fine_tuned_model_checkpoint=row.model,
            fine_tuning_job_id=row.job_id,
            step_number=row.step,
            metrics=CheckpointMetrics.model_validate(metrics | {"step": row.step}),
        )


class CurvesObject(BaseModel):
    """This service's own: a job's metrics as columns of equal length."""

    object: Literal["fine_tuning.job.metrics"] = "fine_tuning.job.metrics"
    step: list[float]
    seconds: list[float] = Field(description="Since the job's first metrics.")
    tokens: list[float] = Field(description="That were learned from, in all.")
    values: dict[str, list[float | None]] = Field(description="By name; null where no step of a point has it.")
    last_seq: int = Field(description="Of the newest event that counts: go on with the job's events after it.")

    @classmethod
    def of(cls, found: Curves) -> "CurvesObject":
        return cls(
            step=found.step, seconds=found.seconds, tokens=found.tokens, values=found.values, last_seq=found.last
        )
