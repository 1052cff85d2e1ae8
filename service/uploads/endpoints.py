"""``/v1/uploads``"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import FormData, UploadFile

from service.accounts.caller import Caller, Known, Route, in_transaction
from service.accounts.scopes import needs
from service.core import forms, storage
from service.core.errors import invalid
from service.core.threads import bulk_threads
from service.files.service import HELD_FOR, Stored, discard
from service.idempotency.once import Once
from service.uploads import service
from service.uploads.schemas import CompleteUpload, CreateUpload, PartObject, UploadObject

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=Route)

PART_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


async def _form(request: Request, known: Known) -> AsyncIterator[FormData]:
    """The part, read only after the caller is known: a stranger cannot make the server store anything."""
    async with forms.read(request, known.organization_id, max_fields=1) as form:
        yield form


@router.post("")
@needs("submit")
def create(caller: Caller, once: Once, body: CreateUpload) -> UploadObject:
    """Announce a file that will come in parts. The upload is pending for an hour."""
    return once.run(
        caller.session,
        body.model_dump(mode="json"),
        UploadObject,
        lambda: UploadObject.of(service.create(caller.session, caller.principal, body)),
    )


@router.post("/{upload_id}/parts", openapi_extra=PART_BODY)
@needs("submit")
async def add_part(form: Annotated[FormData, Depends(_form)], known: Known, once: Once, upload_id: str) -> PartObject:
    """Send a part of the file, in any order, several at a time if you like."""
    data = form.get("data")
    if not isinstance(data, UploadFile):
        raise invalid("Missing required parameter: 'data'. Send it as a multipart file part.", "data")
    tenant, source = known.organization_id, data.file

    async def store() -> service.StoredPart:
        await in_transaction(known, service.check_pending, upload_id)
        return await bulk_threads.run_to_end(tenant, service.store_part, upload_id, source)

    return await once.run_long(
        await bulk_threads.run_to_end(tenant, storage.digest, source),
        PartObject,
        store,
        lambda session, stored: PartObject.of(service.add_part(session, upload_id, stored)),
        lambda stored: stored.discard(),
        held_for=HELD_FOR,
    )


@router.post("/{upload_id}/complete")
@needs("submit")
async def complete(known: Known, once: Once, upload_id: str, body: CompleteUpload) -> UploadObject:
    """Join the parts, in the order of ``part_ids``, into a file, which is checked as any uploaded file is."""

    async def join() -> Stored:
        size, paths = await in_transaction(known, service.ordered_parts, upload_id, body.part_ids)
        try:
            return await bulk_threads.run_to_end(known.organization_id, service.join, size, paths, body.md5)
        except FileNotFoundError:
            # Someone else completed or cancelled the upload since, and its parts are gone.
            await in_transaction(known, service.check_pending, upload_id)
            raise

    return await once.run_long(
        body.model_dump(mode="json"),
        UploadObject,
        join,
        lambda session, stored: UploadObject.of(*service.complete(session, known, upload_id, stored)),
        discard,
        held_for=HELD_FOR,
    )


@router.post("/{upload_id}/cancel")
@needs("submit")
def cancel(caller: Caller, once: Once, upload_id: str) -> UploadObject:
    """End an upload and delete its parts."""
    return once.run(
        caller.session, None, UploadObject, lambda: UploadObject.of(service.cancel(caller.session, upload_id))
    )
