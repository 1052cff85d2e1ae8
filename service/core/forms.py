"""Forms with files, read so that their texts can be kept."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.datastructures import FormData, UploadFile

from service.core.errors import DomainError, invalid

MAX_IN_PROGRESS = 16
"""Forms with files of one organisation that an API process takes in at a time: none is counted before it is whole."""

in_progress: Counter[str] = Counter()


@asynccontextmanager
async def read(request: Request, organization_id: str, *, max_fields: int) -> AsyncIterator[FormData]:
    """The form of a request, with one file at most, which is closed at the end. Raises a 429 where ``MAX_IN_PROGRESS``
    others of the organisation are open, and a 400 that names the field with a text that is none.
    """
    if in_progress[organization_id] >= MAX_IN_PROGRESS:
        message = f"Your organization sends {MAX_IN_PROGRESS} files or parts already. Wait until one has ended."
        raise DomainError(429, "too_many_uploads", message, headers={"Retry-After": "5"})
    in_progress[organization_id] += 1
    try:
        form = await _read(request, max_fields=max_fields)
        try:
            yield form
        finally:
            await form.close()
    finally:
        in_progress[organization_id] -= 1
        if not in_progress[organization_id]:
            del in_progress[organization_id]


async def _read(request: Request, *, max_fields: int) -> FormData:
    charset = request.headers.get("content-type", "").lower().partition("charset=")[2].partition(";")[0].strip(' "')
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise invalid(f"A form must be UTF-8, not '{charset[:40]}'.", None, "unsupported_content_type")
    form = await request.form(max_files=1, max_fields=max_fields)
    for name, value in form.multi_items():
        text = (value.filename or "") if isinstance(value, UploadFile) else value
        if "\0" in name + text:
            shown = name.replace("\0", "?")
            what = "file name" if isinstance(value, UploadFile) else "value"
            raise invalid(f"The name or {what} of '{shown}' holds a NUL, which cannot be stored.", shown)
    return form
