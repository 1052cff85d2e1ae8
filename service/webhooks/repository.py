"""Queries on webhook endpoints and deliveries."""

from collections.abc import Collection, Sequence
from datetime import timedelta

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from service.core import pagination
from service.webhooks.models import WebhookDelivery, WebhookEndpoint

PENDING = (WebhookDelivery.delivered_at.is_(None), WebhookDelivery.given_up_at.is_(None))


def add(session: Session, row: WebhookEndpoint | WebhookDelivery) -> None:
    session.add(row)
    session.flush()


def get(session: Session, id: str) -> WebhookEndpoint | None:
    return session.scalar(select(WebhookEndpoint).where(WebhookEndpoint.id == id))


def locked(session: Session, id: str) -> WebhookEndpoint | None:
    return session.scalar(select(WebhookEndpoint).where(WebhookEndpoint.id == id).with_for_update())


def page(session: Session, *, after: str | None, limit: int) -> tuple[Sequence[WebhookEndpoint], bool]:
    return pagination.fetch(session, select(WebhookEndpoint), WebhookEndpoint, after=after, limit=limit)


def count(session: Session, organization_id: str) -> int:
    query = select(func.count()).where(WebhookEndpoint.organization_id == organization_id)
    return session.scalar(query) or 0


def remove(session: Session, id: str) -> bool:
    """Delete an endpoint and what was on its way to it."""
    query = delete(WebhookEndpoint).where(WebhookEndpoint.id == id).returning(WebhookEndpoint.id)
    return session.execute(query).first() is not None


def subscribed(session: Session, project_id: str, event_type: str) -> Sequence[str]:
    """Ids of the endpoints that want to hear of ``event_type``; more of them a training worker may not know."""
    wanted = WebhookEndpoint.event_types.cast(JSONB).contains([event_type])
    query = select(WebhookEndpoint.id).where(WebhookEndpoint.project_id == project_id, wanted)
    return session.scalars(query.order_by(WebhookEndpoint.sequence)).all()


# Deliveries


def claim(
    session: Session, limit: int, *, each: int, but_of: Collection[str], hidden_for: timedelta
) -> Sequence[tuple[WebhookDelivery, WebhookEndpoint]]:
    """Deliveries that are due, with their endpoints, counted as attempted and hidden from others for a while.

    At most ``each`` of one organisation, and none of the organisations ``but_of``.
    """
    turn = func.row_number().over(
        partition_by=WebhookDelivery.organization_id, order_by=WebhookDelivery.next_attempt_at
    )
    ranked = (
        select(WebhookDelivery.id, turn.label("turn"))
        .where(*PENDING, WebhookDelivery.next_attempt_at <= func.now())
        .where(WebhookDelivery.organization_id.not_in(but_of))
        .subquery()
    )
    due = (
        select(WebhookDelivery.id)
        .join(ranked, ranked.c.id == WebhookDelivery.id)
        # Asked again of the row that was locked: another may have claimed it since it was ranked.
        .where(ranked.c.turn <= each, *PENDING, WebhookDelivery.next_attempt_at <= func.now())
        .order_by(ranked.c.turn, WebhookDelivery.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True, of=WebhookDelivery)
    )
    taken = session.scalars(
        update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(due))
        .values(attempts=WebhookDelivery.attempts + 1, next_attempt_at=func.now() + hidden_for)
        .returning(WebhookDelivery)
    ).all()
    endpoints = {
        each.id: each
        for each in session.scalars(
            select(WebhookEndpoint).where(WebhookEndpoint.id.in_({row.endpoint_id for row in taken}))
        )
    }
    return [(row, endpoints[row.endpoint_id]) for row in taken]


def delivered(session: Session, id: str, result: str) -> None:
    values = {"delivered_at": func.now(), "last_result": result}
    session.execute(update(WebhookDelivery).where(WebhookDelivery.id == id).values(values))


def postpone(session: Session, id: str, wait: timedelta, result: str) -> None:
    values = {"next_attempt_at": func.now() + wait, "last_result": result}
    session.execute(update(WebhookDelivery).where(WebhookDelivery.id == id).values(values))


def give_up(session: Session, id: str, result: str) -> None:
    values = {"given_up_at": func.now(), "last_result": result}
    session.execute(update(WebhookDelivery).where(WebhookDelivery.id == id).values(values))


def remove_old(session: Session, older_than: timedelta, limit: int) -> int:
    """Forget up to ``limit`` deliveries that ended long ago. Returns how many."""
    horizon = func.now() - older_than
    old = (
        select(WebhookDelivery.id)
        .where(or_(WebhookDelivery.delivered_at <= horizon, WebhookDelivery.given_up_at <= horizon))
        .limit(limit)
    )
    query = delete(WebhookDelivery).where(WebhookDelivery.id.in_(old)).returning(WebhookDelivery.id)
    return len(session.scalars(query).all())
