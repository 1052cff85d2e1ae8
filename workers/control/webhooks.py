"""Sending what the webhook outbox holds: at least once, signed, retried for about two days, and never to a private
address that the operator does not trust.
"""

import json
import logging
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx2
from sqlalchemy.exc import SQLAlchemyError

from service.core import ask, clock
from service.core.db import transaction
from service.core.errors import DomainError
from service.core.ids import new_id
from service.core.threads import FairThreads
from service.settings import settings
from service.webhooks import repository, secret
from service.webhooks import service as webhooks
from service.webhooks.models import WebhookDelivery, WebhookEndpoint
from service.webhooks.schemas import TestOutcome, TestQuestion
from workers.network.addresses import ForbiddenAddressError, resolve
from workers.network.requests import port_of, post, signature
from workers.network.watch import Watch

AT_ONCE, AT_ONCE_EACH = 16, 4
"""Deliveries on their way, in all and about so many of one organisation: its slow endpoints hold up only its own."""
MAX_ATTEMPTS = 16
FIRST_WAIT = timedelta(seconds=5)
LONGEST_WAIT = timedelta(hours=6)
HIDDEN_FOR = timedelta(minutes=2)
"""A delivery whose worker died is due again after this; longer than an attempt can take."""
TIMEOUT = httpx2.Timeout(10.0, connect=5.0)
WHOLE_SECONDS = 20.0
"""One attempt, however slowly the endpoint answers."""

_threads = ThreadPoolExecutor(AT_ONCE, "webhook")
_in_flight: Counter[str] = Counter()
_changed = threading.Condition(threading.RLock())
_tests = FairThreads("webhook-test", threads=4, each=2, waiting=32, waiting_each=8)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What came of an attempt. ``status`` is None when there was no answer; ``text`` says why, or the status."""

    status: int | None
    text: str

    @property
    def accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def begin() -> None:
    """Begin to send what is due, on threads of our own. Returns at once; whenever one is free, more is begun."""
    with _changed:
        free = AT_ONCE - _in_flight.total()
        busy = [organization_id for organization_id, number in _in_flight.items() if number >= AT_ONCE_EACH]
        if free <= 0:
            return
        with transaction("troll_control") as session:
            due = repository.claim(session, free, each=AT_ONCE_EACH, but_of=busy, hidden_for=HIDDEN_FOR)
            now = clock.now(session)
        for delivery, endpoint in due:
            _in_flight[delivery.organization_id] += 1
            _threads.submit(_send, delivery, endpoint, now)


def deliver() -> None:
    """``begin``, and wait until nothing is on its way."""
    begin()
    with _changed:
        _changed.wait_for(lambda: not _in_flight)


def _send(delivery: WebhookDelivery, endpoint: WebhookEndpoint, now: datetime) -> None:
    try:
        _deliver(delivery, endpoint, now)
    except Exception:
        log.exception("%s is left for later", delivery.id)
    with _changed:
        _in_flight[delivery.organization_id] -= 1
        if not _in_flight[delivery.organization_id]:
            del _in_flight[delivery.organization_id]
        try:
            begin()
        except SQLAlchemyError as error:
            log.warning("the schedule will go on with webhooks: %s", error)
        _changed.notify_all()


def test(id: str, question: dict[str, Any]) -> None:
    """Have a sample event sent, and whoever asked as question ``id`` told what came of it. Returns at once.

    Raises ``pydantic.ValidationError`` for a question of another version.
    """
    asked = TestQuestion.model_validate(question)
    ask.answer_on(_tests, asked.organization_id, id, lambda: _test(asked))


def _test(asked: TestQuestion) -> TestOutcome:
    with transaction("troll_control") as session:
        endpoint, now = repository.get(session, asked.endpoint_id), clock.now(session)
    if endpoint is None:
        result = Result(None, "it was deleted")
    else:
        event_id = new_id("evt_")
        sample = webhooks.payload(event_id, asked.event_type, "ftjob-sample", now)
        result = send(endpoint, event_id, sample, now)
    return TestOutcome(status=result.status, result=result.text)


def _deliver(delivery: WebhookDelivery, endpoint: WebhookEndpoint, now: datetime) -> None:
    result = send(endpoint, delivery.id, delivery.payload, now)
    with transaction("troll_control") as session:
        if result.accepted:
            repository.delivered(session, delivery.id, result.text)
        elif delivery.attempts >= MAX_ATTEMPTS:
            repository.give_up(session, delivery.id, result.text)
            log.warning("gave up %s to %s after %d attempts: %s", delivery.id, endpoint.id, MAX_ATTEMPTS, result.text)
        else:
            repository.postpone(session, delivery.id, wait_after(delivery.attempts), result.text)
            log.info("%s to %s failed, attempt %d: %s", delivery.id, endpoint.id, delivery.attempts, result.text)


def wait_after(attempts: int) -> timedelta:
    """5 s, 20 s, 80 s, … up to 6 h, and up to a quarter more so that retries do not come in step."""
    times: int = 4 ** (attempts - 1)
    return min(FIRST_WAIT * times, LONGEST_WAIT) * (1 + random.random() / 4)


def send(endpoint: WebhookEndpoint, event_id: str, payload: dict[str, Any], now: datetime) -> Result:
    """Send one event once, dated ``now`` by the database's clock. Never raises for what the endpoint does."""
    try:
        webhooks.check_url(endpoint.url)
        address = _address(endpoint.url)
    except (ForbiddenAddressError, DomainError) as error:
        return Result(None, str(error))
    body = json.dumps(payload, separators=(",", ":")).encode()
    headers = {"user-agent": "troll-webhooks/1", **_signatures(endpoint, event_id, body, now)}
    watch = Watch(WHOLE_SECONDS)
    try:
        with post(endpoint.url, address, body, headers, timeout=TIMEOUT, watch=watch) as answer:
            # Nobody reads the body: only the status counts, and an endless body would cost us.
            return Result(answer.status_code, f"it answered with status {answer.status_code}")
    except httpx2.TimeoutException:
        return Result(None, "it took too long to answer")
    except httpx2.HTTPError as error:
        return Result(None, "it took too long to answer" if watch.over else f"{type(error).__name__}: {error}")


def _address(url: str) -> str:
    """What to connect to. Raises ``ForbiddenAddressError``."""
    host = urlsplit(url).hostname or ""
    return resolve(host, port_of(url), private_network=host in settings().trusted_hosts)


def _signatures(endpoint: WebhookEndpoint, event_id: str, body: bytes, now: datetime) -> dict[str, str]:
    """The headers of the Standard Webhooks; two signatures while an old secret is still good."""
    timestamp = int(now.timestamp())
    salts = [endpoint.salt]
    if endpoint.old_salt and endpoint.old_salt_until and endpoint.old_salt_until > now:
        salts.append(endpoint.old_salt)
    each = [signature(secret.derive(endpoint.id, salt), event_id, timestamp, body) for salt in salts]
    return {**each[0], "webhook-signature": " ".join(headers["webhook-signature"] for headers in each)}
