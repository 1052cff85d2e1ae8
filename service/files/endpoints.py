"""``/v1/files``"""

from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse
from sqlalchemy.orm import Session
from starlette.datastructures import FormData, UploadFile

from service.accounts.caller import Caller, Known, Route, in_transaction
from service.accounts.scopes import needs
from service.core import forms, storage
from service.core.bodies import MULTIPART_ALLOWANCE
from service.core.errors import invalid
from service.core.pagination import Page, page
from service.core.threads import bulk_threads
from service.files import repository, service
from service.files.schemas import DeletedFile, FileObject
from service.idempotency.once import Once
from service.settings import settings
from service.usage import service as usage

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=Route)

UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": [service.FINE_TUNE]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": service.EXPIRY_RANGE[0],
                            "maximum": service.EXPIRY_RANGE[1],
                        },
                    },
                }
            }
        },
    }
}


async def _form(request: Request, known: Known) -> AsyncIterator[FormData]:
    """The upload, read only after the caller is known: a stranger cannot make the server store anything.

    Nor can one whose organisation has no room, unless a repetition asks for what was stored before.
    """
    if "idempotency-key" not in request.headers:
        announced = request.headers.get("content-length", "")
        size = int(announced) - MULTIPART_ALLOWANCE if announced.isdecimal() else 0
        await in_transaction(known, usage.check_storage, known.organization_id, max(0, size))
    async with forms.read(request, known.organization_id, max_fields=10) as form:
        yield form


@router.post("", openapi_extra=UPLOAD_BODY)
@needs("submit")
async def create(form: Annotated[FormData, Depends(_form)], known: Known, once: Once) -> FileObject:
    """Upload a JSONL file of training or validation rows. It is checked line by line before it is accepted."""
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise invalid("Missing required parameter: 'file'. Send it as a multipart file part.", "file")
    purpose = form.get("purpose")
    if not isinstance(purpose, str):
        raise invalid("Missing required parameter: 'purpose'.", "purpose")
    service.check_purpose(purpose)
    filename, expiry = upload.filename or "upload", _expiry(form)
    service.check_expiry(expiry)
    tenant, source = known.organization_id, upload.file

    def register(session: Session, stored: service.Stored) -> FileObject:
        usage.check_upload(session, tenant, stored.bytes, "file")
        usage.check_storage(session, tenant, stored.bytes)
        file = service.register(
            session, known, stored, filename=filename, purpose=purpose, expires_after_seconds=expiry
        )
        return FileObject.of(file)

    return await once.run_long(
        [filename, purpose, expiry, await bulk_threads.run_to_end(tenant, storage.digest, source)],
        FileObject,
        lambda: bulk_threads.run_to_end(tenant, service.store, source, settings().max_file_bytes),
        register,
        service.discard,
        held_for=service.HELD_FOR,
    )


def _expiry(form: FormData) -> int | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise invalid("The only anchor is 'created_at'.", "expires_after.anchor")
    if not isinstance(seconds, str) or not seconds.isascii() or not seconds.isdigit():
        raise invalid("Must be a whole number of seconds.", "expires_after.seconds")
    return int(seconds[:12])


@router.get("")
@needs("read")
def list_files(
    caller: Caller,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> Page[FileObject]:
    rows, has_more = repository.page(
        caller.session, purpose=purpose, after=after, limit=limit, ascending=order == "asc"
    )
    return page([FileObject.of(row) for row in rows], has_more=has_more)


@router.get("/{file_id}")
@needs("read")
def retrieve(caller: Caller, file_id: str) -> FileObject:
    return FileObject.of(service.retrieve(caller.session, file_id))


@router.get(
    "/{file_id}/content",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
@needs("read")
def content(caller: Caller, file_id: str) -> FileResponse:
    """The bytes of a file, exactly as uploaded."""
    file = service.retrieve(caller.session, file_id)
    return FileResponse(storage.file_path(file.id), media_type="application/octet-stream", filename=file.filename)


@router.delete("/{file_id}")
@needs("manage")
def delete(caller: Caller, file_id: str) -> DeletedFile:
    service.delete(caller.session, file_id)
    return DeletedFile(id=file_id)
