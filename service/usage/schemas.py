"""Usage on the wire, in OpenAI's shape, and limits, which are this service's own."""

from typing import Literal

from pydantic import BaseModel

from service.usage.repository import Group, Stored, Tokens


class CompletionsResult(BaseModel):
    """Tokens and requests of a bucket, of one model or project where they are grouped by them."""

    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int
    output_tokens: int
    num_model_requests: int
    input_cached_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    batch: bool | None = None

    @classmethod
    def of(cls, group: dict[Group, str], tokens: Tokens) -> "CompletionsResult":
        return cls(input_tokens=tokens.input, output_tokens=tokens.output, num_model_requests=tokens.requests, **group)


class Bucket(BaseModel):
    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[CompletionsResult]


class UsagePage(BaseModel):
    object: Literal["page"] = "page"
    data: list[Bucket]
    has_more: bool
    next_page: str | None = None


class GPUResult(BaseModel):
    object: Literal["organization.usage.gpu_seconds.result"] = "organization.usage.gpu_seconds.result"
    gpu_seconds: float
    project_id: str | None = None


class GPUBucket(BaseModel):
    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[GPUResult]


class GPUUsagePage(BaseModel):
    object: Literal["page"] = "page"
    data: list[GPUBucket]
    has_more: bool
    next_page: str | None = None


class StorageResult(BaseModel):
    object: Literal["organization.usage.storage.result"] = "organization.usage.storage.result"
    project_id: str
    bytes: int
    file_bytes: int
    upload_bytes: int
    job_bytes: int
    export_bytes: int

    @classmethod
    def of(cls, stored: Stored) -> "StorageResult":
        return cls(
            project_id=stored.project_id,
            bytes=stored.files + stored.uploads + stored.jobs + stored.exports,
            file_bytes=stored.files,
            upload_bytes=stored.uploads,
            job_bytes=stored.jobs,
            export_bytes=stored.exports,
        )


class StorageObject(BaseModel):
    object: Literal["organization.usage.storage"] = "organization.usage.storage"
    data: list[StorageResult]


class LimitsOfOrganization(BaseModel):
    """Null does not limit."""

    storage_bytes: int | None
    upload_bytes: int
    queued_jobs: int
    running_jobs: int
    streams_per_key: int
    requests_per_minute_and_key: int | None
    chat_tokens_per_day: int | None
    gpu_seconds_per_month: float | None


class UsedByOrganization(BaseModel):
    storage_bytes: int
    queued_jobs: int
    running_jobs: int
    chat_tokens_today: int
    gpu_seconds_this_month: float


class LimitsObject(BaseModel):
    object: Literal["organization.limits"] = "organization.limits"
    limits: LimitsOfOrganization
    used: UsedByOrganization
