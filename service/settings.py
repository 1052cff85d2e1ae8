"""Everything an operator can set, read from the environment once."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.contracts.engines import MEMORY_SHARE, EngineName

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_safe_address(url: str) -> bool:
    """Whether nobody on the way can read or change what is sent there."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK))


class Settings(BaseSettings):
    """Settings of every process. Names are upper-cased and prefixed with ``TROLL_`` unless an alias says otherwise."""

    model_config = SettingsConfigDict(env_prefix="TROLL_", frozen=True)

    # Each process is given only those of these four that it uses; ``required`` reads them.
    database_url: SecretStr | None = Field(None, validation_alias=AliasChoices("DATABASE_URL", "TROLL_DATABASE_URL"))
    """SQLAlchemy URL of PostgreSQL under the login of this process: see ``service.core.db``."""
    redis_url: SecretStr | None = Field(None, validation_alias=AliasChoices("REDIS_URL", "TROLL_REDIS_URL"))
    key_pepper: SecretStr | None = Field(None, min_length=32)
    """Secret under which API keys are hashed. Changing it voids every key."""
    webhook_key: SecretStr | None = None
    """Secret, as 64 hexadecimal digits, from which the signing secrets of webhooks are derived."""

    data_dir: Path
    """Folder shared by API and workers: uploaded files, checkpoints, tuned models."""
    models_dir: Path
    """Folder of base models on offer; a model's id is its path beneath it, such as ``Qwen/Qwen3-8B``."""

    max_file_bytes: int = 512 * 1024**2
    max_upload_bytes: int = 8 * 1024**3
    """Largest file that may be uploaded in parts."""
    max_part_bytes: int = 64 * 1024**2
    """Largest part of such a file."""
    max_storage_bytes: int = Field(0, ge=0)
    """What an organisation may store: files, announced uploads, checkpoints and results; 0 does not limit."""
    max_body_bytes: int = 1024**2
    """Largest JSON body."""
    requests_per_minute: int = Field(1200, ge=0)
    """Requests that an API key may send a minute, all of them at once if it likes; 0 does not limit."""
    stranger_requests_per_minute: int = Field(300, ge=0)
    """Requests without a valid API key that an address may send a minute; 0 does not limit."""
    max_streams_per_key: int = Field(50, ge=1)
    """Event streams and chats that an API key may have open at a time."""
    transaction_pooling: bool = False
    """Whether ``DATABASE_URL`` is a pooler's that gives out connections for a transaction, such as PgBouncer's."""
    chat_tokens_per_day: int = Field(0, ge=0)
    """Tokens of prompts and answers that an organisation may use in a day of UTC; 0 does not limit."""
    max_training_rows: int = Field(500_000, ge=1)
    max_validation_rows: int = Field(5_000, ge=1)
    max_queued_jobs: int = 100
    """Jobs an organisation may have queued at a time."""
    max_running_jobs: int = 8
    """Jobs an organisation may have running at a time."""

    trusted_hosts: frozenset[str] = frozenset()
    """Host names (as JSON) that webhooks may reach over plain http and at addresses that are not public."""

    public_url: str | None = None
    """Where browsers find this service, such as ``https://troll.example.com``; an OIDC provider leads back there."""
    oidc_issuer: str | None = None
    """The OIDC provider with which people may sign in; its discovery document lies beneath."""
    oidc_client_id: str | None = None
    oidc_client_secret: SecretStr | None = None
    oidc_client_secret_file: Path | None = None
    """A file that holds the client's secret, in place of the variable."""
    oidc_scopes: str = "openid email profile"
    """What the provider is asked for, parted by spaces."""
    oidc_verified_claim: str = "email_verified"
    """The claim that says whether the provider has made sure of the e-mail."""
    oidc_allowed_domains: frozenset[str] = frozenset()
    """Domains (as JSON) of e-mails that may sign in; empty allows all."""
    oidc_organization: str | None = None
    """Name of the organisation that people sign in to, unless a claim names it."""
    oidc_organization_claim: str | None = None
    """The claim that names the organisation, as a text or a list."""
    oidc_role_claim: str | None = None
    """The claim that holds ``owner``, ``member`` or ``reader``; who has none of them does not get in."""
    oidc_provision: Literal["off", "reader", "member"] = "off"
    """What people become in the default project whom nobody invited; off lets in invited people only."""
    session_hours: float = Field(12.0, gt=0, le=720)
    """How long somebody who signed in with the provider stays signed in."""

    rollout_engine: EngineName = "transformers"
    """What samples the answers of jobs that leave it to the operator; vLLM must be installed where the workers run."""

    wandb_mode: Literal["off", "online", "offline"] = "off"
    """Whether jobs may report to Weights & Biases; offline keeps runs in the job's folder, for ``wandb sync``."""
    wandb_api_key: SecretStr | None = None
    wandb_base_url: str | None = None
    """A W&B server of one's own; unset, it is W&B's."""
    wandb_entity: str | None = None
    """The one team or user to whose projects jobs may report; unset, any that the key may write to."""
    mlflow_uri: str | None = None
    """The MLflow server that jobs may report to, such as ``https://mlflow.example.com``; unset, they may not."""
    mlflow_token: SecretStr | None = None
    mlflow_username: str | None = None
    mlflow_password: SecretStr | None = None
    trackio_dir: Path | None = None
    """The folder of the trackio store that jobs may report to, the same for all workers; unset, they may not."""
    tracker_projects: str = "*"
    """Projects of W&B and trackio and experiments of MLflow that jobs may name: ``*`` stands for anything,
    ``{organization}`` and ``{project}`` for the ids of who asks."""

    hub_url: str | None = None
    """A Hugging Face hub that users may push exports to by a token of theirs, such as ``https://huggingface.co``."""
    exports_kept_hours: int = Field(72, ge=1, le=24 * 365)
    """How long an export can be downloaded once it is made; one that no worker makes is given up as late."""

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
    rollout_memory_share: float = Field(MEMORY_SHARE, gt=0, lt=1)
    """Share of the GPU's memory that vLLM takes to sample a job's answers; the trainer needs the rest."""

    pulse_file: Path | None = None
    """A file that beat and serving workers touch while they work, for checks of their health."""

    lease_seconds: float = 60.0
    """How long a worker may be silent before its job is given to another."""
    heartbeat_seconds: float = 15.0
    sweep_seconds: float = 15.0
    stop_grace_seconds: float = 300.0
    """How long a training child may take to save a checkpoint when it is asked to stop."""
    progress_timeout_seconds: float = 3600.0
    """A training child that says nothing for this long is stuck and is killed."""
    retry_delay_seconds: float = 30.0
    preempt_after_seconds: float = Field(0.0, ge=0)
    """How long a job may keep its worker while one of an organisation that had less GPU time waits; 0 is as long as it
    takes. Its job goes on later from the checkpoint that it saves."""
    max_strikes: int = 3
    """Attempts without a new checkpoint after which a job fails instead of being tried again."""
    events_kept_days: int = Field(0, ge=0, le=36_500)
    """Days after a job's end for which its events are kept; 0 keeps them for good."""
    checkpoints_kept: int = 3
    """Best checkpoints kept of each job, beside the newest two."""

    @field_validator("public_url", "oidc_issuer")
    @classmethod
    def _safe_address(cls, value: str | None) -> str | None:
        if value is not None and not is_safe_address(value):
            raise ValueError("must begin with https://, or with http:// and be this machine's own, as localhost is")
        return value

    @field_validator("hub_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", value):
            raise ValueError("must be the address of a hub, such as https://huggingface.co")
        return value and value.rstrip("/")

    @field_validator("webhook_key")
    @classmethod
    def _hexadecimal(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch("[0-9a-f]{64}", value.get_secret_value()):
            raise ValueError("must be 64 hexadecimal digits in small letters, as 'openssl rand -hex 32' gives")
        return value

    @field_validator("mlflow_uri")
    @classmethod
    def _without_secret(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/@?#\s]+(/[^@?#\s]*)?", value):
            raise ValueError("must be an http or https address without user, password or query")
        return value

    @field_validator("trackio_dir")
    @classmethod
    def _whole_path(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("must be the whole path of a folder, such as /data/trackio")
        return value

    @field_validator("tracker_projects")
    @classmethod
    def _known_placeholders(cls, value: str) -> str:
        if re.search(r"[{}]", re.sub(r"\{(organization|project)\}", "", value)):
            raise ValueError("may have {organization} and {project} in braces, and no others")
        return value

    @model_validator(mode="after")
    def _whole_engines(self) -> Self:
        if self.processes_per_job % self.rollout_tensor_parallel:
            raise ValueError(
                f"TROLL_ROLLOUT_TENSOR_PARALLEL={self.rollout_tensor_parallel} does not divide "
                f"TROLL_PROCESSES_PER_JOB={self.processes_per_job}"
            )
        return self


class MissingSettingError(Exception):
    """A setting that not every process has is missing in one that uses it."""


@cache
def settings() -> Settings:
    """The process's settings: from the environment, and what is not there from the files of ``secrets_dir``.

    Raises ``pydantic.ValidationError`` naming each variable that is missing.
    """
    return Settings(_secrets_dir=secrets_dir())


def secrets_dir() -> Path | None:
    """The folder that ``TROLL_SECRETS_DIR`` names, in which a file such as ``redis_url`` holds that variable's value.

    Raises ``MissingSettingError`` where it is no folder: pydantic would pass over it.
    """
    folder = os.environ.get("TROLL_SECRETS_DIR")
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise MissingSettingError(f"TROLL_SECRETS_DIR names {folder}, which is no folder here: is it mounted?")
    return Path(folder)


Secret = Literal["database_url", "redis_url", "key_pepper", "webhook_key"]


def required(name: Secret) -> str:
    """A secret that this process uses. Raises ``MissingSettingError`` naming the variable when it was not given."""
    secret: SecretStr | None = getattr(settings(), name)
    if secret is None:
        variable = name.upper() if name.endswith("_url") else f"TROLL_{name.upper()}"
        raise MissingSettingError(
            f"{variable} is not set, nor a file of TROLL_SECRETS_DIR, and this process needs it: "
            "see docs/operations.md, 'Settings'."
        )
    return secret.get_secret_value()
