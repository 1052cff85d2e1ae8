"""``/v1/uploads``"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import FormData, UploadFile

from service.accounts.caller import Caller, Known
from service.core import forms, storage
from service.core.db import tenant
from service.core.errors import invalid
from service.files.service import discard
from service.idempotency.once import Once
from service.uploads import service
from service.uploads.schemas import CompleteUpload, CreateUpload, PartObject, UploadObject

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

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


async def _form(request: Request, known: Known) -> FormData:
    """The part, read only after the caller is known: a stranger cannot make the server store anything."""
    return await forms.read(request, max_fields=1)


@router.post("")
def create(caller: Caller, once: Once, body: CreateUpload) -> UploadObject:
    """Announce a file that will come in parts. The upload is pending for an hour."""
    return once.run(
        caller.session,
        body.model_dump(mode="json"),
        UploadObject,
        lambda: UploadObject.of(service.create(caller.session, caller.principal, body)),
    )


@router.post("/{upload_id}/parts", openapi_extra=PART_BODY)
def add_part(form: Annotated[FormData, Depends(_form)], caller: Caller, once: Once, upload_id: str) -> PartObject:
    """Send a part of the file, in any order, several at a time if you like."""
    data = form.get("data")
    if not isinstance(data, UploadFile):
        raise invalid("Missing required parameter: 'data'. Send it as a multipart file part.", "data")
    return once.run(
        caller.session,
        storage.digest(data.file),
        PartObject,
        lambda: PartObject.of(service.add_part(caller.session, upload_id, data.file)),
    )


@router.post("/{upload_id}/complete")
def complete(known: Known, once: Once, upload_id: str, body: CompleteUpload) -> UploadObject:
    """Join the parts, in the order of ``part_ids``, into a file, which is checked as any uploaded file is."""
    content = body.model_dump(mode="json")
    with tenant(known.organization_id) as session:
        kept = once.kept(session, content, UploadObject)
    if kept is not None:
        return kept
    stored = service.join(known, upload_id, body)
    try:
        with tenant(known.organization_id) as session:
            kept = once.kept(session, content, UploadObject)
            if kept is None:
                answer = UploadObject.of(*service.complete(session, known, upload_id, stored))
                once.keep(session, content, answer)
    except BaseException:
        discard(stored)
        raise
    if kept is not None:
        discard(stored)
    return kept or answer


@router.post("/{upload_id}/cancel")
def cancel(caller: Caller, once: Once, upload_id: str) -> UploadObject:
    """End an upload and delete its parts."""
    return once.run(
        caller.session, None, UploadObject, lambda: UploadObject.of(service.cancel(caller.session, upload_id))
    )
