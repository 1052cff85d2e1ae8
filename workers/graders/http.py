"""``http``: rewards from a team's own scoring service.

    POST {"samples": [{"sample": {"output_text": …}, "item": {…}}, …]}  →  {"rewards": [0.5, {"error": "why"}, …]}

The service is one that the operator lists. Requests are signed as the Standard Webhooks are, so that it can tell them
from others': ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature: v1,base64(HMAC-SHA256(secret,
"id.timestamp.body"))``. A retry repeats the id. The address is resolved and checked once and then connected to;
redirects and proxies are not followed.
"""

import base64
import math
import ssl
import time
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2

from service.contracts import strict_json
from service.graders.kinds.http import Http
from service.graders.settings import GraderSettings, ScoringService
from workers.graders.grading import Grade, GraderSample, SingleGrader, limited
from workers.network.addresses import ForbiddenAddressError, UnresolvedError, resolve
from workers.network.requests import port_of, post, signature
from workers.network.watch import Watch

BATCH = 64
ATTEMPTS = 4
FIRST_DELAY = 0.5
TIMEOUT = httpx2.Timeout(60.0, connect=5.0)
MAX_ANSWER_BYTES = 1024**2
MAX_SECONDS = 300.0
"""One request with its retries, however slowly the service sends."""
AWAY = {408, 425, 429, 502, 503, 504}
"""What a server answers, or whatever stands before it, that is overloaded or away."""
_TRANSIENT = AWAY | {500}


class ServiceFailedError(Exception):
    """The scoring service gave no usable answer. The message is shown to users and holds nothing of the answer.

    ``away``: it did not answer at all, and may in some minutes.
    """

    def __init__(self, message: str, *, away: bool = False) -> None:
        super().__init__(message)
        self.away = away


class _TryAgainError(ServiceFailedError):
    """It may do so on another attempt."""


class HttpGrader(SingleGrader):
    """Raises ``OSError`` when the signing secret cannot be read."""

    batch_size = BATCH

    def __init__(self, definition: Http, settings: GraderSettings) -> None:
        service = settings.service_of(definition.url)
        assert service is not None, "check_allowed comes first"
        self._name, self._url, self._service = definition.name, definition.url, service
        self._secret, self._seconds = _secret(service), settings.batch_seconds

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        deadline = time.monotonic() + self._seconds
        grades: list[Grade] = []
        for batch in _batches(samples):
            grades += self._grade_batch(batch, deadline)
            if grades[-1].away:
                # The others would only wait as long for nothing.
                return grades + grades[-1:] * (len(samples) - len(grades))
        return grades

    def _grade_batch(self, samples: list[GraderSample], deadline: float) -> list[Grade]:
        try:
            rewards = self._rewards(samples, min(deadline, time.monotonic() + MAX_SECONDS))
        except ServiceFailedError as error:
            detail = f"The scoring service {error}."
            return [Grade(None, error="other_error", detail=detail, away=error.away)] * len(samples)
        return [limited(_grade(reward), self._name, "other_error", raised=False) for reward in rewards]

    def _rewards(self, samples: list[GraderSample], deadline: float) -> list[Any]:
        if time.monotonic() > deadline:
            raise ServiceFailedError("was not asked: the time of the batch was up")
        body = strict_json.dumps(
            {"samples": [{"sample": {"output_text": each.output_text}, "item": each.item} for each in samples]}
        ).encode(errors="replace")
        id = f"msg_{uuid.uuid4().hex}"
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_DELAY * 2 ** (attempt - 1))
            try:
                return _parse(self._post(id, body, deadline), len(samples))
            except _TryAgainError as error:
                last = error
            if time.monotonic() > deadline:
                break
        raise last

    def _post(self, id: str, body: bytes, deadline: float) -> bytes:
        try:
            host = urlsplit(self._url).hostname or ""
            address = resolve(host, port_of(self._url), private_network=self._service.private_network)
        except UnresolvedError as error:
            raise _TryAgainError(f"was not called: {error}", away=True) from None
        except ForbiddenAddressError as error:
            raise ServiceFailedError(f"was not called: {error}") from None
        headers = {"accept-encoding": "identity", **signature(self._secret, id, int(time.time()), body)}
        watch = Watch(max(deadline - time.monotonic(), 1.0))
        try:
            with post(self._url, address, body, headers, timeout=TIMEOUT, watch=watch) as answer:
                return _read(answer, deadline)
        except httpx2.TimeoutException:
            raise _TryAgainError("took too long to answer", away=True) from None
        except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            if watch.over:
                raise ServiceFailedError("took too long to answer") from None
            where = f"could not be reached ({self._service.origin})"
            raise _TryAgainError(
                f"{where}: {str(error) or type(error).__name__}", away=not _is_distrust(error)
            ) from None
        except httpx2.HTTPError as error:
            raise _TryAgainError(f"could not be asked: {type(error).__name__}") from None


def _secret(service: ScoringService) -> bytes:
    """The secret in the service's file: ``whsec_`` and Base64, or any text. Raises ``OSError``."""
    text = service.secret_file.read_text().strip()
    try:
        secret = base64.b64decode(text.removeprefix("whsec_")) if text.startswith("whsec_") else text.encode()
    except ValueError:
        raise OSError(f"the secret file {service.secret_file} holds no Base64 behind 'whsec_'") from None
    if not secret:
        raise OSError(f"the secret file {service.secret_file} is empty")
    return secret


def _is_distrust(error: BaseException | None) -> bool:
    """Whether a connection failed because of the server's certificate, which no waiting mends."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _batches(samples: list[GraderSample]) -> Iterator[list[GraderSample]]:
    for start in range(0, len(samples), BATCH):
        yield samples[start : start + BATCH]


def _read(answer: httpx2.Response, deadline: float) -> bytes:
    if answer.status_code in _TRANSIENT:
        raise _TryAgainError(f"answered with status {answer.status_code}", away=answer.status_code in AWAY)
    if answer.status_code != 200:
        raise ServiceFailedError(f"answered with status {answer.status_code}")
    read = bytearray()
    # Raw, so that a small compressed answer does not become a large one.
    for chunk in answer.iter_raw():
        read += chunk
        if len(read) > MAX_ANSWER_BYTES:
            raise ServiceFailedError(f"answered with more than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise ServiceFailedError("took too long to answer")
    return bytes(read)


def _parse(body: bytes, count: int) -> list[Any]:
    try:
        answer = strict_json.loads(body.decode())
    except (strict_json.InvalidJSONError, UnicodeDecodeError):
        raise ServiceFailedError("answered with something that is not JSON") from None
    rewards = answer.get("rewards") if isinstance(answer, dict) else None
    if not isinstance(rewards, list) or len(rewards) != count:
        raise ServiceFailedError(f"did not answer with {count} 'rewards', one for each sample")
    return rewards


def _grade(reward: Any) -> Grade:
    match reward:
        case bool():
            pass
        case int() | float() if abs(reward) < 1e300 and math.isfinite(reward):
            return Grade(float(reward))
        case {"error": str(error)}:
            return Grade(None, error="other_error", detail=f"The scoring service: {error[:1000]}")
    detail = f"The scoring service gave {strict_json.kind(reward)} for a reward, not a finite number."
    return Grade(None, error="other_error", detail=detail)
