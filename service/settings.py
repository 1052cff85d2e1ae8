"""Everything an operator can set, read from the environment once."""

from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import AliasChoices, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of every process. Names are upper-cased and prefixed with ``TROLL_`` unless an alias says otherwise."""

    model_config = SettingsConfigDict(env_prefix="TROLL_", frozen=True)

    database_url: str = Field(validation_alias=AliasChoices("DATABASE_URL", "TROLL_DATABASE_URL"))
    """SQLAlchemy URL of PostgreSQL. Its login must be a member of the roles that the first migration creates."""
    database_owner_url: str | None = Field(None, validation_alias=AliasChoices("DATABASE_OWNER_URL"))
    """URL of the login that owns the tables and runs migrations; ``database_url`` when unset."""
    redis_url: str = Field(validation_alias=AliasChoices("REDIS_URL", "TROLL_REDIS_URL"))
    key_pepper: SecretStr = Field(min_length=32)
    """Secret under which API keys are hashed. Changing it voids every key."""

    data_dir: Path
    """Folder shared by API and workers: uploaded files, checkpoints, tuned models."""
    models_dir: Path
    """Folder of base models on offer; a model's id is its path beneath it, such as ``Qwen/Qwen3-8B``."""

    max_file_bytes: int = 512 * 1024**2
    max_upload_bytes: int = 8 * 1024**3
    """Largest file that may be uploaded in parts."""
    max_part_bytes: int = 64 * 1024**2
    """Largest part of such a file."""
    max_body_bytes: int = 1024**2
    """Largest JSON body."""
    requests_per_minute: int = Field(1200, ge=0)
    """Requests that an API key may send a minute, all of them at once if it likes; 0 does not limit."""
    max_streams_per_key: int = Field(50, ge=1)
    """Event streams and chats that an API key may have open at a time."""
    max_training_rows: int = Field(50_000, ge=1)
    max_validation_rows: int = Field(1_000, ge=1)
    max_queued_jobs: int = 100
    """Jobs an organisation may have queued at a time."""
    max_running_jobs: int = 8
    """Jobs an organisation may have running at a time."""

    trusted_hosts: frozenset[str] = frozenset()
    """Host names (as JSON) that webhooks may reach over plain http and at addresses that are not public."""

    rollout_engine: Literal["transformers", "vllm"] = "transformers"
    """What samples the answers of jobs that leave it to the operator; vLLM must be installed where the workers run."""

    wandb_mode: Literal["off", "online", "offline"] = "off"
    """Whether jobs may report to Weights & Biases; offline keeps runs in the job's folder, for ``wandb sync``."""
    wandb_api_key: SecretStr | None = None
    wandb_base_url: str | None = None
    """A W&B server of one's own; unset, it is W&B's."""

    serving_engine: Literal["transformers", "vllm"] = "transformers"
    """What answers ``/v1/chat/completions``; vLLM must be installed where the serving workers run."""
    serving_concurrency: int = Field(64, ge=1)
    """Answers that a serving worker has at work at a time; one organisation gets half of what the others leave."""
    serving_queue: int = Field(512, ge=1)
    """Answers of one organisation that may wait for a serving worker; of all together, four times as many."""
    serving_memory_share: float = Field(0.5, gt=0, le=1)
    """Share of the GPU's memory, or the machine's without one, that loaded models may take; one is always loaded."""
    serving_idle_seconds: float = Field(600.0, gt=0)
    """How long a model that nobody uses stays loaded."""
    processes_per_job: int = Field(1, ge=1, le=64)
    """Processes that train a job's model together, each on a GPU of its own where there are GPUs."""
    rollout_tensor_parallel: int = Field(1, ge=1, le=64)
    """How many of these processes share one vLLM engine, whose weights are split over them."""

    lease_seconds: float = 60.0
    """How long a worker may be silent before its job is given to another."""
    heartbeat_seconds: float = 15.0
    sweep_seconds: float = 15.0
    stop_grace_seconds: float = 300.0
    """How long a training child may take to save a checkpoint when it is asked to stop."""
    progress_timeout_seconds: float = 3600.0
    """A training child that says nothing for this long is stuck and is killed."""
    retry_delay_seconds: float = 30.0
    max_strikes: int = 3
    """Attempts without a new checkpoint after which a job fails instead of being tried again."""
    checkpoints_kept: int = 3
    """Best checkpoints kept of each job, beside the newest two."""

    @model_validator(mode="after")
    def _whole_engines(self) -> Self:
        if self.processes_per_job % self.rollout_tensor_parallel:
            raise ValueError(
                f"TROLL_ROLLOUT_TENSOR_PARALLEL={self.rollout_tensor_parallel} does not divide "
                f"TROLL_PROCESSES_PER_JOB={self.processes_per_job}"
            )
        return self

    @property
    def owner_url(self) -> str:
        return self.database_owner_url or self.database_url


@cache
def settings() -> Settings:
    """The process's settings. Raises ``pydantic.ValidationError`` naming each variable that is missing."""
    return Settings()
