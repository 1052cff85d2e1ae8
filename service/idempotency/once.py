"""A POST that arrives twice is carried out once.

The official client sends a POST again when an answer was lost, and marks it with nothing but
``x-stainless-retry-count``. So the answer to each covered request is kept in the transaction that carried it out: a
marked request with the same content as a recent one of the same API key gets that answer. Callers who want the promise
without the guess send an ``Idempotency-Key``, which holds for a day and for one content only.

A request that takes longer than a transaction is held meanwhile by a row of its own: whoever repeats it is told at once
that it is still being carried out. Equal requests that are no repetitions do not wait for each other.
"""

import asyncio
import hashlib
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Header, Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from service.accounts.caller import Known, in_transaction
from service.accounts.known import Principal
from service.accounts.service import is_default
from service.core import threads
from service.core.db import tenant
from service.core.errors import DomainError, invalid
from service.core.ids import new_id
from service.core.threads import TookTooLongError, request_threads
from service.idempotency import repository

KEPT_FOR = timedelta(hours=24)
RETRY_WINDOW = timedelta(minutes=10)

Answer = TypeVar("Answer", bound=BaseModel)
Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Attempt:
    """One arrival of a request. ``key`` is the caller's own, ``is_retry`` says that the client marked it as one."""

    known: Principal
    operation: str
    key: str | None
    is_retry: bool
    holder: str = field(default_factory=lambda: new_id("attempt_"))

    def run(self, session: Session, content: Any, model: type[Answer], act: Callable[[], Answer]) -> Answer:
        """The kept answer to this request, or what ``act`` answers, kept in the transaction of ``session``.

        ``content`` is what makes two requests the same, as JSON. Raises a 400 when a key comes with other content.
        A kept answer is the ``Response`` that FastAPI sends as it is.
        """
        kept = self._begin(session, content, model, RETRY_WINDOW)
        if kept is not None:
            return cast(Answer, kept)
        answer = act()
        self._keep(session, content, answer)
        return answer

    async def run_long(
        self,
        content: Any,
        model: type[Answer],
        prepare: Callable[[], Awaitable[Prepared]],
        finish: Callable[[Session, Prepared], Answer],
        undo: Callable[[Prepared], object],
        *,
        held_for: timedelta,
    ) -> Answer:
        """``run`` for a request that takes longer: ``prepare`` is awaited in no transaction, ``finish`` ends it in one.

        ``undo`` removes what was prepared, should that not commit. A repetition gets a 503 until then, or until
        ``held_for`` has passed.
        """
        kept = await self._begun(content, model, held_for)
        if kept is not None:
            return cast(Answer, kept)
        try:
            prepared = await prepare()
            return await in_transaction(
                self.known,
                lambda session: self._keep(session, content, finish(session, prepared)),
                undo=lambda: undo(prepared),
            )
        except TookTooLongError:
            # It may be carried out yet, and then keeps its answer. Otherwise the hold runs out.
            raise
        except BaseException as error:
            released = request_threads.submit(self.known.organization_id, self._release, content, begun=True)
            if isinstance(error, DomainError) and error.status < 500:
                # Whoever corrects the request may send it with the same key at once.
                await asyncio.wait([asyncio.wrap_future(released)], timeout=threads.REQUEST_SECONDS)
            # Otherwise it is not waited for: what made the request fail may last, and the hold runs out.
            raise

    async def _begun(self, content: Any, model: type[BaseModel], held_for: timedelta) -> Response | None:
        """``_begin`` in a transaction of its own, which does not commit once nobody waits for it."""
        given_up = threading.Event()

        def begin(session: Session) -> Response | None:
            kept = self._begin(session, content, model, held_for)
            if given_up.is_set():
                raise TookTooLongError
            return kept

        try:
            return await in_transaction(self.known, begin)
        except BaseException:
            given_up.set()
            raise

    def _begin(self, session: Session, content: Any, model: type[BaseModel], held_for: timedelta) -> Response | None:
        """The answer that was given before; None when this attempt is to carry the request out."""
        fingerprint = self._fingerprint(content)
        name = self._name(fingerprint)
        younger_than = KEPT_FOR if self.key is not None else RETRY_WINDOW if self.is_retry else None
        if repository.hold(
            session,
            self.known,
            name,
            fingerprint,
            holder=self.holder,
            held_for=held_for,
            younger_than=younger_than,
        ):
            return None
        found = repository.find(session, self.known, name)
        if found is not None and found.fingerprint != fingerprint:
            message = "This Idempotency-Key came with another request before. Send a new key with each new request."
            raise invalid(message, "Idempotency-Key", "idempotency_key_reused")
        if found is None or found.answer is None:
            raise _in_progress()
        try:
            answer = model.model_validate(found.answer).model_dump_json()
        except ValidationError:
            # Another version has given it, and it is given again as it was.
            answer = json.dumps(found.answer)
        return Response(answer, media_type="application/json", headers={"idempotent-replayed": "true"})

    def _keep(self, session: Session, content: Any, answer: Answer) -> Answer:
        fingerprint = self._fingerprint(content)
        name, kept = self._name(fingerprint), answer.model_dump(mode="json")
        if self.key is None:
            # Equal requests without a key are each carried out; the last answer is kept.
            repository.keep(session, self.known, name, fingerprint, kept)
        elif not repository.keep_own(session, self.known, name, self.holder, kept):
            # The hold ran out meanwhile, and a repetition is carried out. What this one did is rolled back.
            raise _in_progress()
        return answer

    def _release(self, content: Any) -> None:
        with tenant(self.known) as session:
            name = self._name(self._fingerprint(content))
            repository.release(session, self.known, name, self.holder)

    def _fingerprint(self, content: Any) -> str:
        text = json.dumps([self.known.key_id, self.operation, content], sort_keys=True)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()

    def _name(self, fingerprint: str) -> str:
        """Within the organisation: each project has keys of its own, those of the default one as they always were."""
        if self.key is None:
            return f"body:{fingerprint}"
        return f"key:{self.key}" if is_default(self.known) else f"{self.known.project_id}:key:{self.key}"


def _in_progress() -> DomainError:
    message = "The same request is still being handled. Ask again shortly for its answer."
    return DomainError(503, "request_in_progress", message, headers={"Retry-After": "1", "retry-after-ms": "500"})


async def _attempt(
    request: Request,
    known: Known,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="Send the same key again to get the same answer again."),
    ] = None,
    x_stainless_retry_count: Annotated[str, Header(include_in_schema=False)] = "0",
) -> Attempt:
    return Attempt(
        known=known,
        operation=f"{request.method} {request.url.path}",
        key=idempotency_key,
        is_retry=x_stainless_retry_count.strip() not in ("", "0"),
    )


Once = Annotated[Attempt, Depends(_attempt)]
