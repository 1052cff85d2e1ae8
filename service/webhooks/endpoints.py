"""``/v1/webhook_endpoints``, as ``client.webhooks`` manages them."""

from typing import Annotated

from fastapi import APIRouter, Query

from service.accounts.caller import Caller, Known, Route, in_transaction
from service.accounts.scopes import needs
from service.core.pagination import Page, page
from service.webhooks import repository, service
from service.webhooks.schemas import (
    EVENT_TYPES,
    CreateEndpoint,
    DeletedEndpoint,
    EndpointObject,
    EndpointWithSecret,
    EventTypeList,
    RotateSecret,
    TestEndpoint,
    TestResult,
    UpdateEndpoint,
)

router = APIRouter(prefix="/v1", tags=["webhooks"], route_class=Route)


@router.get("/webhook_event_types")
@needs("read")
def event_types(known: Known) -> EventTypeList:
    return EventTypeList(data=list(EVENT_TYPES))


@router.post("/webhook_endpoints")
@needs("manage")
def create(caller: Caller, body: CreateEndpoint) -> EndpointWithSecret:
    """The answer holds the signing secret, which is never shown again."""
    return EndpointWithSecret.of(service.create(caller.session, caller.principal, body))


@router.get("/webhook_endpoints")
@needs("read")
def list_endpoints(
    caller: Caller, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> Page[EndpointObject]:
    """Newest first."""
    rows, has_more = repository.page(caller.session, after=after, limit=limit)
    return page([EndpointObject.of(row) for row in rows], has_more=has_more)


@router.get("/webhook_endpoints/{webhook_endpoint_id}")
@needs("read")
def retrieve(caller: Caller, webhook_endpoint_id: str) -> EndpointObject:
    return EndpointObject.of(service.retrieve(caller.session, webhook_endpoint_id))


@router.post("/webhook_endpoints/{webhook_endpoint_id}")
@needs("manage")
def update(caller: Caller, webhook_endpoint_id: str, body: UpdateEndpoint) -> EndpointObject:
    """Change the fields that are sent."""
    return EndpointObject.of(service.update(caller.session, webhook_endpoint_id, body))


@router.delete("/webhook_endpoints/{webhook_endpoint_id}")
@needs("manage")
def delete(caller: Caller, webhook_endpoint_id: str) -> DeletedEndpoint:
    """Nothing more is sent to it, not even what was on its way."""
    service.delete(caller.session, webhook_endpoint_id)
    return DeletedEndpoint(id=webhook_endpoint_id)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/rotate_secret")
@needs("manage")
def rotate_secret(caller: Caller, webhook_endpoint_id: str, body: RotateSecret | None = None) -> EndpointWithSecret:
    """A new signing secret, shown in this answer only."""
    keep_old = body is not None and body.keep_old_secret_active_for_24_hours
    return EndpointWithSecret.of(service.rotate_secret(caller.session, webhook_endpoint_id, keep_old=keep_old))


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test")
@needs("manage")
async def test(known: Known, webhook_endpoint_id: str, body: TestEndpoint) -> TestResult:
    """Send a sample event now and tell what the endpoint answered."""
    await in_transaction(known, service.retrieve, webhook_endpoint_id)
    return await service.test(known.organization_id, webhook_endpoint_id, body.event_type)
