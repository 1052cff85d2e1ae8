"""A POST that arrives twice is carried out once.

The official client sends a POST again when an answer was lost, and marks it with nothing but
``x-stainless-retry-count``. So the answer to each covered request is kept in the transaction that carried it out: a
marked request with the same content as a recent one of the same API key gets that answer. Callers who want the promise
without the guess send an ``Idempotency-Key``, which holds for a day and for one content only.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response
from psycopg.errors import LockNotAvailable
from pydantic import BaseModel
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.accounts.caller import Known
from service.core.errors import DomainError, invalid
from service.idempotency import repository

KEPT_FOR = timedelta(hours=24)
RETRY_WINDOW = timedelta(minutes=10)

Answer = TypeVar("Answer", bound=BaseModel)


@dataclass(frozen=True)
class Attempt:
    """One arrival of a request. ``key`` is the caller's own, ``is_retry`` says that the client marked it as one."""

    organization_id: str
    key_id: str
    operation: str
    key: str | None
    is_retry: bool
    response: Response

    def run(self, session: Session, content: Any, model: type[Answer], act: Callable[[], Answer]) -> Answer:
        """The kept answer to this request, or what ``act`` answers, kept in the transaction of ``session``.

        ``content`` is what makes two requests the same, as JSON. Raises a 400 when a key comes with other content.
        """
        kept = self.kept(session, content, model)
        if kept is not None:
            return kept
        answer = act()
        self.keep(session, content, answer)
        return answer

    def kept(self, session: Session, content: Any, model: type[Answer]) -> Answer | None:
        """The answer that was given before. Until the transaction ends nobody else handles the same request."""
        fingerprint = self._fingerprint(content)
        name = self._name(fingerprint)
        _lock(session, self.organization_id, name)
        if self.key is None and not self.is_retry:
            return None
        age = RETRY_WINDOW if self.key is None else KEPT_FOR
        found = repository.find(session, self.organization_id, name, age)
        if found is None:
            return None
        if found.fingerprint != fingerprint:
            message = "This Idempotency-Key came with another request before. Send a new key with each new request."
            raise invalid(message, "Idempotency-Key", "idempotency_key_reused")
        self.response.headers["idempotent-replayed"] = "true"
        return model.model_validate(found.answer)

    def keep(self, session: Session, content: Any, answer: BaseModel) -> None:
        fingerprint = self._fingerprint(content)
        kept = answer.model_dump(mode="json")
        repository.keep(session, self.organization_id, self._name(fingerprint), fingerprint, kept)

    def _fingerprint(self, content: Any) -> str:
        text = json.dumps([self.key_id, self.operation, content], sort_keys=True)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()

    def _name(self, fingerprint: str) -> str:
        return f"body:{fingerprint}" if self.key is None else f"key:{self.key}"


def _lock(session: Session, organization_id: str, name: str) -> None:
    try:
        repository.lock(session, organization_id, name)
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
        message = "The same request is still being handled. Ask again shortly for its answer."
        raise DomainError(503, "request_in_progress", message, headers={"Retry-After": "5"}) from error


def _attempt(
    request: Request,
    response: Response,
    known: Known,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="Send the same key again to get the same answer again."),
    ] = None,
    x_stainless_retry_count: Annotated[str, Header(include_in_schema=False)] = "0",
) -> Attempt:
    return Attempt(
        organization_id=known.organization_id,
        key_id=known.key_id,
        operation=f"{request.method} {request.url.path}",
        key=idempotency_key,
        is_retry=x_stainless_retry_count.strip() not in ("", "0"),
        response=response,
    )


Once = Annotated[Attempt, Depends(_attempt)]
