"""Forms with files, read so that their texts can be kept."""

from fastapi import Request
from starlette.datastructures import FormData, UploadFile

from service.core.errors import invalid


async def read(request: Request, *, max_fields: int) -> FormData:
    """The form of a request, with one file at most. Raises a 400 that names the field with a text that is none."""
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
