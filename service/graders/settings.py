"""What an operator decides about graders: the jail and its limits, the judges, the scoring services.

The same values reach the API, which refuses at submission what is not allowed, and the training child, which has no
other settings. They hold no secrets: keys are named by the file that holds them.
"""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

JailTier = Literal["off", "unshare", "bubblewrap"]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_DEFAULT_PORTS = {"https": 443, "http": 80}


def origin_of(url: str) -> str:
    """``scheme://host:port`` of ``url``, lower-cased, the port always given. Raises ``ValueError``."""
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS:
        raise ValueError("it must start with https:// or http://")
    if not parts.hostname:
        raise ValueError("it names no host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it must not hold a user name or a password")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or _DEFAULT_PORTS[parts.scheme]}"


@dataclass(frozen=True, config=_STRICT)
class JailLimits:
    """What one run of graded code may use. The defaults are those that the hosted API published, but for the disk."""

    seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """Wall-clock time, and processor time of each process."""
    memory_bytes: Annotated[int, Field(ge=64 * 1024**2)] = 2 * 1024**3
    """Address space of each process; with ``cgroup``, memory of the whole jail as well."""
    disk_bytes: Annotated[int, Field(ge=1024**2)] = 256 * 1024**2
    """Files under ``/tmp``, the only place that can be written. They are in memory."""
    processes: Annotated[int, Field(ge=1, le=1024)] = 16
    """Processes and threads at a time."""
    open_files: Annotated[int, Field(ge=16, le=65_536)] = 256
    output_bytes: Annotated[int, Field(ge=4096, le=4 * 1024**2)] = 1024**2
    """What a run may report, and what a script may print."""


@dataclass(frozen=True, config=_STRICT)
class ModelEndpoint:
    """An OpenAI-compatible server whose ``models`` may grade. Its ``base_url`` is the operator's, never a user's."""

    base_url: Annotated[str, AfterValidator(lambda url: (origin_of(url), url)[1])]
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    api_key_file: Path | None = None


@dataclass(frozen=True, config=_STRICT)
class ScoringService:
    """A server that graders of type ``http`` may call; every request to it is signed with the secret in a file."""

    origin: Annotated[str, AfterValidator(origin_of)]
    """Such as ``https://scores.example.com``; a grader's URL must have the same scheme, host and port."""
    secret_file: Path
    private_network: bool = False
    """Whether it may resolve to an address that is not public. Plain ``http`` is for private networks only."""
    organization_id: str | None = None
    """The only organisation that may use it; None for all."""

    def __post_init__(self) -> None:
        if self.origin.startswith("http://") and not self.private_network:
            raise ValueError(f"'{self.origin}' must be https, or private_network must be set")


@dataclass(frozen=True, config=_STRICT)
class GraderSettings:
    """By default nothing of it is allowed: no code is run and no other server is asked."""

    jail: JailTier = "off"
    """What confines python graders and code tests. ``off`` refuses them."""
    jail_limits: JailLimits = JailLimits()
    jail_lanes: Annotated[int, Field(ge=1, le=64)] = 2
    """Jails that grade one batch side by side."""
    jail_cgroup: Path | None = None
    """A folder of the cgroup v2 file system that the worker may write, with memory and pids enabled for children."""
    batch_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """After this long a batch of samples is given up: those not graded yet have no reward."""
    model_endpoints: tuple[ModelEndpoint, ...] = ()
    model_requests: Annotated[int, Field(ge=1, le=256)] = 16
    """Requests to judges at a time."""
    scoring_services: tuple[ScoringService, ...] = ()

    def endpoint_of(self, model: str) -> ModelEndpoint | None:
        """The endpoint that serves ``model``."""
        return next((each for each in self.model_endpoints if model in each.models), None)

    def service_of(self, url: str, organization_id: str | None = None) -> ScoringService | None:
        """The scoring service that ``url`` belongs to: same scheme, host and port.

        ``organization_id`` is the caller's; None asks for any organisation's.
        """
        origin = origin_of(url)
        return next(
            (
                each
                for each in self.scoring_services
                if each.origin == origin and organization_id in (None, each.organization_id or organization_id)
            ),
            None,
        )
