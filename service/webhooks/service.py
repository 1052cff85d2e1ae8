"""Managing webhook endpoints, and putting events into their outbox."""

from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from service.accounts.known import Principal
from service.audit import repository as audit
from service.core import ask, broker
from service.core.db import Owner, across_projects, after_commit, lock
from service.core.errors import invalid, not_found
from service.core.ids import new_id, random_text
from service.files.repository import now
from service.settings import settings
from service.webhooks import repository
from service.webhooks.models import WebhookDelivery, WebhookEndpoint
from service.webhooks.schemas import CreateEndpoint, TestOutcome, TestQuestion, TestResult, UpdateEndpoint

MAX_ENDPOINTS = 20
"""Endpoints that an organisation may have."""
OLD_SECRET_LIFE = timedelta(hours=24)
TEST_SECONDS = 30.0


def create(session: Session, principal: Principal, request: CreateEndpoint) -> WebhookEndpoint:
    check_url(request.url)
    # Two that are made at once would each find room for one.
    lock(session, f"webhook endpoints/{principal.organization_id}")
    with across_projects(session):
        number = repository.count(session, principal.organization_id)
    if number >= MAX_ENDPOINTS:
        raise invalid(f"An organization may have {MAX_ENDPOINTS} webhook endpoints.", None, "too_many_endpoints")
    endpoint = WebhookEndpoint(
        id=new_id("whe_"),
        organization_id=principal.organization_id,
        project_id=principal.project_id,
        name=request.name,
        url=request.url,
        event_types=list(dict.fromkeys(request.event_types)),
        salt=random_text(32),
    )
    repository.add(session, endpoint)
    data = {"name": endpoint.name, "url": endpoint.url, "event_types": endpoint.event_types}
    audit.record(session, "webhook_endpoint.created", endpoint.id, data=data)
    return endpoint


def retrieve(session: Session, id: str) -> WebhookEndpoint:
    return _found(repository.get(session, id), id)


def update(session: Session, id: str, request: UpdateEndpoint) -> WebhookEndpoint:
    endpoint = _found(repository.locked(session, id), id)
    changes: dict[str, Any] = request.model_dump(exclude_none=True)
    if "url" in changes:
        check_url(changes["url"])
    changed = {name: value for name, value in changes.items() if getattr(endpoint, name) != value}
    for name, value in changed.items():
        setattr(endpoint, name, value)
    if changed:
        endpoint.updated_at = now(session)
        audit.record(session, "webhook_endpoint.updated", id, changes_requested=changed)
    return endpoint


def rotate_secret(session: Session, id: str, *, keep_old: bool) -> WebhookEndpoint:
    """Give an endpoint a new secret; the old one ends at once, or signs beside the new one for a day."""
    endpoint = _found(repository.locked(session, id), id)
    moment = now(session)
    endpoint.old_salt = endpoint.salt if keep_old else None
    endpoint.old_salt_until = moment + OLD_SECRET_LIFE if keep_old else None
    endpoint.salt, endpoint.updated_at = random_text(32), moment
    audit.record(session, "webhook_endpoint.secret_rotated", id, data={"keep_old": keep_old})
    return endpoint


def delete(session: Session, id: str) -> None:
    if not repository.remove(session, id):
        raise not_found("webhook endpoint", id, "webhook_endpoint_id")
    audit.record(session, "webhook_endpoint.deleted", id)


async def test(organization_id: str, endpoint_id: str, event_type: str) -> TestResult:
    """Have a sample event sent now. Raises a 400 when the endpoint could not be reached."""
    question = TestQuestion(organization_id=organization_id, endpoint_id=endpoint_id, event_type=event_type)
    told = ask.read(TestOutcome, await ask.ask(broker.TEST_WEBHOOK, question.model_dump(), TEST_SECONDS))
    if told.status is None:
        raise invalid(f"The endpoint could not be reached: {told.result}.", "url", "webhook_unreachable")
    return TestResult(webhook_endpoint_id=endpoint_id, event_type=event_type, status_code=told.status)


def announce_job(session: Session, owner: Owner, job_id: str, status: str) -> None:
    """Put the end of a job of ``owner`` into the outbox of every endpoint of its project that wants to hear of it.

    Call it where the job ends.
    """
    event_type = f"fine_tuning.job.{status}"
    endpoints = repository.subscribed(session, owner.project_id, event_type)
    for endpoint_id in endpoints:
        id = new_id("evt_")
        repository.add(
            session,
            WebhookDelivery(
                id=id,
                organization_id=owner.organization_id,
                endpoint_id=endpoint_id,
                event_type=event_type,
                payload=payload(id, event_type, job_id, now(session)),
            ),
        )
    if endpoints:
        after_commit(session, broker.ring_webhooks)


def payload(id: str, event_type: str, job_id: str, created_at: datetime) -> dict[str, Any]:
    """An event as ``client.webhooks.unwrap`` gives it."""
    return {
        "id": id,
        "object": "event",
        "created_at": int(created_at.timestamp()),
        "type": event_type,
        "data": {"id": job_id},
    }


def check_url(url: str) -> None:
    """Raise a 400 for a URL that is never called. Its address is checked at each call, because names move."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it is what checks it
    except ValueError as error:
        raise invalid(f"This is not a URL: {error}.", "url") from error
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise invalid("The URL must start with 'https://' and name a host.", "url")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise invalid("The URL must not hold a user name, a password or a fragment.", "url")
    if not url.isascii() or any(character <= " " for character in url):
        raise invalid("The URL must be plain ASCII without spaces.", "url")
    if parts.scheme == "http" and parts.hostname not in settings().trusted_hosts:
        raise invalid("The URL must start with 'https://'.", "url")


def _found(endpoint: WebhookEndpoint | None, id: str) -> WebhookEndpoint:
    if endpoint is None:
        raise not_found("webhook endpoint", id, "webhook_endpoint_id")
    return endpoint
