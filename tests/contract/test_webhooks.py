"""Webhooks as the official client manages and verifies them, sent to a real server."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import psycopg
import pytest

from service.core.db import tenant
from service.embedded.servers import Servers
from service.settings import settings
from service.webhooks import service
from service.webhooks.models import WebhookEndpoint
from tests import factories
from tests.conftest import Key
from tests.contract.conftest import Official
from tests.contract.test_graders import control_worker
from workers.control import webhooks
from workers.jobs import supervisor

__all__ = ["control_worker"]

ALL: list[Any] = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]


class Receiver:
    """A team's server. It answers with the next of ``statuses``, the last one for ever."""

    def __init__(self) -> None:
        receiver = self
        self.statuses = [200]
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.drip = False

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.received.append((dict(self.headers), body))
                status = receiver.statuses.pop(0) if len(receiver.statuses) > 1 else receiver.statuses[0]
                if receiver.drip:
                    self._drip()
                    return
                self.send_response(status)
                self.send_header("location", receiver.url)
                self.end_headers()

            def _drip(self) -> None:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                try:
                    for _ in range(200):
                        self.wfile.write(b"x: y\r\n")
                        time.sleep(0.05)
                except OSError:
                    return

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.stop()


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, database: object) -> Iterator[None]:
    monkeypatch.setenv("TROLL_TRUSTED_HOSTS", '["127.0.0.1"]')
    settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.cache_clear()


@pytest.fixture
def subscribe(acme: openai.OpenAI, receiver: Receiver, trusted: None) -> Callable[..., Any]:
    return lambda: acme.webhooks.create(name="ours", url=receiver.url, event_types=ALL)


def outbox(database: Servers) -> list[tuple[Any, ...]]:
    query = "SELECT event_type, attempts, delivered_at IS NOT NULL, given_up_at IS NOT NULL FROM webhook_deliveries"
    with psycopg.connect(database.database_owner_url) as connection:
        return list(connection.execute(query + " ORDER BY sequence").fetchall())


def hurry(database: Servers) -> None:
    """Let the time until the next attempt pass."""
    with psycopg.connect(database.database_owner_url, autocommit=True) as connection:
        connection.execute("UPDATE webhook_deliveries SET next_attempt_at = now()")


# Managing


def test_an_endpoint_is_made_listed_changed_and_deleted(official: Official) -> None:
    hooks = official.client.webhooks
    made = official.ask(hooks.create(name="ci", url="https://example.com/hook", event_types=ALL[:1]))
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret.endswith(made.signing_secret_hint[-5:])
    (listed,) = official.everything(hooks.list())
    assert listed.id == made.id
    assert "signing_secret" not in listed.to_dict()
    changed = official.ask(hooks.update(made.id, name="cd", event_types=ALL))
    assert (changed.name, changed.event_types, changed.url) == ("cd", ALL, "https://example.com/hook")
    assert official.ask(hooks.retrieve(made.id)).name == "cd"
    assert official.ask(hooks.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        official.ask(hooks.retrieve(made.id))


def test_the_event_types_are_those_that_are_sent(official: Official) -> None:
    assert official.ask(official.client.webhooks.event_types.list()).data == ALL


def test_a_rotated_secret_is_another(official: Official) -> None:
    hooks = official.client.webhooks
    made = official.ask(hooks.create(name="ci", url="https://example.com/hook", event_types=ALL))
    assert official.ask(hooks.rotate_secret(made.id)).signing_secret != made.signing_secret


@pytest.mark.parametrize(
    "url",
    ["http://example.com/", "ftp://example.com/", "https://", "https://u:p@example.com/", "https://a b/", "nonsense"],
)
def test_urls_that_are_never_called_are_refused(acme: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.webhooks.create(name="bad", url=url, event_types=ALL)
    assert refusal.value.param == "url"


def test_an_event_type_that_is_never_sent_is_refused(acme: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.webhooks.create(name="bad", url="https://example.com", event_types=["batch.completed"])
    assert refusal.value.param == "event_types.0"


def test_another_organisations_endpoint_is_not_found(acme: openai.OpenAI, connect: Any, new_key: Any) -> None:
    made = acme.webhooks.create(name="ci", url="https://example.com/hook", event_types=ALL)
    stranger = connect(new_key(organization="globex"))
    calls: list[Callable[[], object]] = [
        lambda: stranger.webhooks.retrieve(made.id),
        lambda: stranger.webhooks.update(made.id, name="mine"),
        lambda: stranger.webhooks.rotate_secret(made.id),
        lambda: stranger.webhooks.test(made.id, event_type=ALL[0]),
        lambda: stranger.webhooks.delete(made.id),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError):
            call()
    assert list(stranger.webhooks.list()) == []


# Sending


def test_a_cancelled_job_is_told_signed(
    acme: openai.OpenAI, subscribe: Any, receiver: Receiver, body: dict[str, Any]
) -> None:
    secret = subscribe().signing_secret
    job = acme.fine_tuning.jobs.create(**body).id
    acme.fine_tuning.jobs.cancel(job)
    webhooks.deliver()
    ((headers, sent),) = receiver.received
    event: Any = acme.webhooks.unwrap(sent, headers, secret=secret)
    assert (event.type, event.data.id, event.object) == ("fine_tuning.job.cancelled", job, "event")
    assert headers["webhook-id"] == event.id
    with pytest.raises(openai.InvalidWebhookSignatureError):
        acme.webhooks.unwrap(sent.replace(job.encode(), b"ftjob-other"), headers, secret=secret)


@pytest.mark.parametrize(
    ("plan", "event_type"), [("succeed", "fine_tuning.job.succeeded"), ("user-error", "fine_tuning.job.failed")]
)
def test_the_end_of_a_run_is_told(
    acme: openai.OpenAI,
    subscribe: Any,
    receiver: Receiver,
    body: dict[str, Any],
    stub: None,
    plan: str,
    event_type: str,
) -> None:
    secret = subscribe().signing_secret
    acme.fine_tuning.jobs.create(**body, suffix=plan)
    supervisor.run("worker-1")
    webhooks.deliver()
    ((headers, sent),) = receiver.received
    assert acme.webhooks.unwrap(sent, headers, secret=secret).type == event_type


def test_only_what_was_asked_for_is_sent(
    acme: openai.OpenAI, receiver: Receiver, trusted: None, body: dict[str, Any]
) -> None:
    acme.webhooks.create(name="ours", url=receiver.url, event_types=["fine_tuning.job.failed"])
    acme.fine_tuning.jobs.cancel(acme.fine_tuning.jobs.create(**body).id)
    webhooks.deliver()
    assert receiver.received == []


def test_an_event_that_was_rolled_back_is_not_in_the_outbox(subscribe: Any, database: Servers, api_key: Any) -> None:
    subscribe()

    class Abort(Exception):
        pass

    def announce_and_abort() -> None:
        with tenant(api_key) as session:
            service.announce_job(session, api_key, "ftjob-x", "failed")
            raise Abort

    with pytest.raises(Abort):
        announce_and_abort()
    assert outbox(database) == []


def test_a_failing_endpoint_is_tried_again_with_the_same_id(
    acme: openai.OpenAI, subscribe: Any, receiver: Receiver, body: dict[str, Any], database: Servers
) -> None:
    subscribe()
    receiver.statuses = [500, 302, 200]
    acme.fine_tuning.jobs.cancel(acme.fine_tuning.jobs.create(**body).id)
    for attempt, (delivered, seen) in enumerate([(False, 1), (False, 2), (True, 3)], start=1):
        webhooks.deliver()
        assert outbox(database) == [("fine_tuning.job.cancelled", attempt, delivered, False)]
        assert len(receiver.received) == seen, "a redirect was followed or an attempt left out"
        webhooks.deliver()
        assert len(receiver.received) == seen, "it was tried again at once"
        if not delivered:
            hurry(database)
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1


def test_an_endpoint_that_never_answers_well_is_given_up(
    acme: openai.OpenAI, subscribe: Any, receiver: Receiver, body: dict[str, Any], database: Servers
) -> None:
    subscribe()
    receiver.statuses = [503]
    acme.fine_tuning.jobs.cancel(acme.fine_tuning.jobs.create(**body).id)
    with psycopg.connect(database.database_owner_url, autocommit=True) as connection:
        connection.execute("UPDATE webhook_deliveries SET attempts = %s", [webhooks.MAX_ATTEMPTS - 1])
    webhooks.deliver()
    hurry(database)
    webhooks.deliver()
    assert outbox(database) == [("fine_tuning.job.cancelled", webhooks.MAX_ATTEMPTS, False, True)]
    assert len(receiver.received) == 1


def test_waits_grow_and_are_bounded() -> None:
    waits = [webhooks.wait_after(attempts) for attempts in range(1, webhooks.MAX_ATTEMPTS)]
    assert timedelta(seconds=5) <= waits[0] <= timedelta(seconds=6.25)
    assert max(waits) <= 1.25 * webhooks.LONGEST_WAIT
    assert timedelta(days=2) <= sum(waits, timedelta()) <= timedelta(days=4)


def test_both_secrets_sign_for_a_day_after_a_gentle_rotation(
    acme: openai.OpenAI, subscribe: Any, receiver: Receiver, body: dict[str, Any]
) -> None:
    old = subscribe()
    new = acme.webhooks.rotate_secret(old.id, keep_old_secret_active_for_24_hours=True)
    acme.fine_tuning.jobs.cancel(acme.fine_tuning.jobs.create(**body).id)
    webhooks.deliver()
    ((headers, sent),) = receiver.received
    for secret in (old.signing_secret, new.signing_secret):
        acme.webhooks.unwrap(sent, headers, secret=secret)


def test_the_connection_goes_to_the_address_that_was_checked(
    receiver: Receiver, database: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[str] = []
    real = socket.getaddrinfo

    def once(host: Any, *rest: Any, **named: Any) -> Any:
        asked_for.append(host)
        # The name leads to the receiver when it is checked, and to nowhere when it is looked up again.
        return real("127.0.0.1" if asked_for.count("hooks.test") == 1 else host, *rest, **named)

    monkeypatch.setenv("TROLL_TRUSTED_HOSTS", '["hooks.test"]')
    settings.cache_clear()
    endpoint = WebhookEndpoint(id="whe_1", url=receiver.url.replace("127.0.0.1", "hooks.test"), salt="salt")
    monkeypatch.setattr(socket, "getaddrinfo", once)
    assert webhooks.send(endpoint, "evt_1", {}, datetime.now(UTC)).accepted
    monkeypatch.undo()
    settings.cache_clear()
    assert asked_for.count("hooks.test") == 1
    ((headers, _),) = receiver.received
    assert headers["host"].startswith("hooks.test:")


def test_a_private_address_is_not_called_unless_trusted(
    acme: openai.OpenAI,
    subscribe: Any,
    receiver: Receiver,
    body: dict[str, Any],
    database: Servers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subscribe()
    acme.webhooks.create(name="sly", url="https://localhost:1/", event_types=ALL)
    acme.webhooks.create(name="mapped", url="https://[::ffff:10.0.0.1]/", event_types=ALL)
    monkeypatch.setenv("TROLL_TRUSTED_HOSTS", "[]")
    settings.cache_clear()
    acme.fine_tuning.jobs.cancel(acme.fine_tuning.jobs.create(**body).id)
    webhooks.deliver()
    assert receiver.received == []
    query = "SELECT last_result FROM webhook_deliveries ORDER BY sequence"
    with psycopg.connect(database.database_owner_url) as connection:
        said = [text for (text,) in connection.execute(query)]
    assert "https" in said[0]
    assert all("public internet" in text for text in said[1:])


def test_an_endpoint_that_drips_is_cut_off(
    acme: openai.OpenAI,
    subscribe: Any,
    receiver: Receiver,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    database: Servers,
) -> None:
    subscribe()
    receiver.drip = True
    monkeypatch.setattr(webhooks, "WHOLE_SECONDS", 0.5)
    acme.fine_tuning.jobs.cancel(acme.fine_tuning.jobs.create(**body).id)
    webhooks.deliver()
    assert outbox(database) == [("fine_tuning.job.cancelled", 1, False, False)]
    query = "SELECT last_result FROM webhook_deliveries"
    with psycopg.connect(database.database_owner_url) as connection:
        assert connection.execute(query).fetchall() == [("it took too long to answer",)]


def test_a_deleted_endpoint_gets_nothing_more(
    acme: openai.OpenAI, subscribe: Any, receiver: Receiver, body: dict[str, Any], database: Servers
) -> None:
    endpoint = subscribe()
    acme.fine_tuning.jobs.cancel(acme.fine_tuning.jobs.create(**body).id)
    acme.webhooks.delete(endpoint.id)
    webhooks.deliver()
    assert receiver.received == []
    assert outbox(database) == []


def test_a_sample_can_be_sent_at_once(
    acme: openai.OpenAI, subscribe: Any, receiver: Receiver, control_worker: None
) -> None:
    endpoint = subscribe()
    receiver.statuses = [418]
    result = acme.webhooks.test(endpoint.id, event_type="fine_tuning.job.failed")
    assert (result.status_code, result.success, result.webhook_endpoint_id) == (418, True, endpoint.id)
    ((headers, sent),) = receiver.received
    event: Any = acme.webhooks.unwrap(sent, headers, secret=endpoint.signing_secret)
    assert event.type == "fine_tuning.job.failed"


def test_a_sample_to_nowhere_says_why(acme: openai.OpenAI, subscribe: Any, control_worker: None) -> None:
    endpoint = acme.webhooks.create(name="none", url="http://127.0.0.1:9/", event_types=ALL)
    with pytest.raises(openai.BadRequestError) as refusal:
        acme.webhooks.test(endpoint.id, event_type="fine_tuning.job.failed")
    assert refusal.value.code == "webhook_unreachable"


def test_slow_endpoints_of_one_organisation_hold_up_nobody_elses(
    acme: openai.OpenAI,
    connect: Callable[..., openai.OpenAI],
    new_key: Callable[..., Key],
    trusted: None,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others, go, told = connect(new_key(organization="globex")), threading.Event(), threading.Event()

    def send(endpoint: WebhookEndpoint, event_id: str, payload: dict[str, Any], now: datetime) -> webhooks.Result:
        if endpoint.name == "slow":
            assert go.wait(30)
        else:
            told.set()
        return webhooks.Result(200, "")

    monkeypatch.setattr(webhooks, "send", send)
    for client, name, endpoints in ((acme, "slow", webhooks.AT_ONCE), (others, "quick", 1)):
        for _ in range(endpoints):
            client.webhooks.create(name=name, url="https://example.com/hook", event_types=ALL)
    acme.fine_tuning.jobs.cancel(acme.fine_tuning.jobs.create(**body).id)
    webhooks.begin()
    others.fine_tuning.jobs.cancel(factories.created(others, body["model"]))
    webhooks.begin()
    try:
        assert told.wait(30), "another's slow endpoints hold this one up"
    finally:
        go.set()
        webhooks.deliver()
