"""``POST /v1/fine_tuning/jobs``"""

from datetime import timedelta

from fastapi import APIRouter

from service.accounts.caller import Known, Route
from service.accounts.scopes import needs
from service.idempotency.once import Once
from service.jobs.schemas import CreateJob, JobObject
from service.submission import service

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"], route_class=Route)

HELD_FOR = timedelta(seconds=30)
"""Longer than any submission takes."""


@router.post("")
@needs("submit")
async def create(known: Known, once: Once, body: CreateJob) -> JobObject:
    """Check a job and queue it. Every ``auto`` is answered with the value that will be used.

    What takes longer to check is checked while the job is in `validating_files`; it then becomes `queued` or `failed`.
    """
    return await once.run_long(
        body.model_dump(mode="json"),
        JobObject,
        lambda: service.prepare(known, body),
        lambda session, examined: JobObject.of(service.create(session, examined)),
        lambda examined: examined.draft.discard(),
        held_for=HELD_FOR,
    )
