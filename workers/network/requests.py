"""Requests to servers that users name: signed, and to the address that was checked alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx2
from standardwebhooks import Webhook

from workers.network.watch import Watch


def port_of(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


@contextmanager
def post(
    url: str, address: str, body: bytes, headers: Mapping[str, str], *, timeout: httpx2.Timeout, watch: Watch
) -> Iterator[httpx2.Response]:
    """The answer to a JSON ``body``; its own body is not yet read.

    The connection goes to ``address``, which the host was resolved to; name and certificate stay those of the host.
    Redirects and proxies are not followed. Raises ``httpx2.HTTPError``, of whatever kind when ``watch`` ended it.
    """
    parts, port = urlsplit(url), port_of(url)
    pinned = parts._replace(netloc=f"[{address}]:{port}" if ":" in address else f"{address}:{port}").geturl()
    with (
        watch,
        httpx2.Client(timeout=timeout, trust_env=False, follow_redirects=False) as client,
        client.stream(
            "POST",
            pinned,
            content=body,
            headers={"host": parts.netloc, "content-type": "application/json", **headers},
            extensions={"sni_hostname": parts.hostname, "trace": watch.trace},
        ) as answer,
    ):
        yield answer


def signature(secret: bytes, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that sign ``body``, text in UTF-8; ``timestamp`` is in seconds since 1970."""
    signed = Webhook(secret).sign(id, datetime.fromtimestamp(timestamp, UTC), body.decode())
    return {"webhook-id": id, "webhook-timestamp": str(timestamp), "webhook-signature": signed}
