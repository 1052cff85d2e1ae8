"""Parts of large answers, so that a download that broke goes on where it was (RFC 9110, section 14)."""

import re
from collections.abc import Callable, Iterator

from fastapi.responses import StreamingResponse

from service.core.errors import DomainError

_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")

Read = Callable[[int, int], Iterator[bytes]]
"""The bytes from a first to behind a last one."""


def answer(
    read: Read,
    size: int,
    etag: str,
    *,
    media_type: str,
    headers: dict[str, str],
    wanted: str | None,
    if_range: str | None,
) -> StreamingResponse:
    """All ``size`` bytes of ``read``, or the part that the header ``Range``, here ``wanted``, asks for.

    ``etag`` is a quoted strong tag of the content; with another one in ``If-Range`` all of it is sent. Ranges that are
    malformed, or several at once, are passed over, as is allowed. Raises a 416 for one behind the end.
    """
    headers = {"accept-ranges": "bytes", "etag": etag, **headers}
    part = None if if_range is not None and if_range.strip() != etag else _part(wanted, size)
    if part is None:
        return StreamingResponse(read(0, size), media_type=media_type, headers=headers | {"content-length": str(size)})
    first, end = part
    headers |= {"content-range": f"bytes {first}-{end - 1}/{size}", "content-length": str(end - first)}
    return StreamingResponse(read(first, end), status_code=206, media_type=media_type, headers=headers)


def _part(wanted: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the one behind the last; None for everything."""
    match = _RANGE.fullmatch((wanted or "").strip())
    if match is None:
        return None
    if match[3] is not None:
        first, end = max(0, size - int(match[3])), size
    else:
        first, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
        if match[2] and int(match[2]) < int(match[1]):
            return None
    if first >= end:
        message = f"The range begins behind the end of {size} bytes."
        raise DomainError(416, "range_not_satisfiable", message, "Range", {"content-range": f"bytes */{size}"})
    return first, end
