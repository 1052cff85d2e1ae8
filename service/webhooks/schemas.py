"""Webhook endpoints on the wire."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from service.core.pagination import Listed
from service.webhooks import secret
from service.webhooks.models import WebhookEndpoint

EventType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
EVENT_TYPES: tuple[str, ...] = get_args(EventType)

Name = Annotated[str, Field(min_length=1, max_length=200)]
URL = Annotated[str, Field(min_length=1, max_length=2048)]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=20)]


class CreateEndpoint(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name
    url: URL
    event_types: EventTypes


class UpdateEndpoint(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    url: URL | None = None
    event_types: EventTypes | None = None


class RotateSecret(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keep_old_secret_active_for_24_hours: bool = False


class TestEndpoint(BaseModel):
    __test__ = False
    model_config = ConfigDict(extra="forbid")

    event_type: EventType


class EndpointObject(Listed):
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str | None

    @classmethod
    def of(cls, row: WebhookEndpoint) -> "EndpointObject":
        return cls(**_fields(row))


class EndpointWithSecret(EndpointObject):
    """The only answer that holds the signing secret: ``OpenAI(webhook_secret=…)`` takes it as it is."""

    signing_secret: str

    @classmethod
    def of(cls, row: WebhookEndpoint) -> "EndpointWithSecret":
        return cls(**_fields(row), signing_secret=secret.shown(row.id, row.salt))


class DeletedEndpoint(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: bool = True


class TestQuestion(BaseModel):
    """What the control worker is asked to send."""

    __test__ = False
    model_config = ConfigDict(extra="forbid")

    organization_id: str
    endpoint_id: str
    event_type: str


class TestOutcome(BaseModel):
    """What the control worker says came of it; ``status`` is null where there was no answer."""

    __test__ = False

    status: int | None
    result: str


class TestResult(BaseModel):
    __test__ = False

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class EventTypeList(BaseModel):
    object: Literal["list"] = "list"
    data: list[str]


def _fields(row: WebhookEndpoint) -> dict[str, object]:
    return {
        "id": row.id,
        "created_at": int(row.created_at.timestamp()),
        "updated_at": int(row.updated_at.timestamp()),
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "signing_secret_hint": secret.hint(row.id, row.salt),
    }
