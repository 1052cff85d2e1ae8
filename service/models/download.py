"""Answers that hold files of a model: whole, in parts, or all of them as a tar."""

import base64
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import Header
from fastapi.responses import StreamingResponse

from service.core import ranges
from service.core.errors import not_found
from service.models import archive as archives
from service.models.archive import ModelFile

Range = Annotated[str | None, Header(alias="range", description="One range of bytes, to go on with a download.")]
IfRange = Annotated[str | None, Header(alias="if-range", description="An `ETag`: of another content all is sent.")]


def _binary(media_type: str) -> dict[int | str, dict[str, Any]]:
    content = {"content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}
    return {200: content, 206: {"description": "The part that `Range` asks for.", **content}}


BINARY, TAR = _binary("application/octet-stream"), _binary("application/x-tar")


def file_named(files: Sequence[ModelFile], name: str) -> ModelFile:
    file = next((file for file in files if file.name == name), None)
    if file is None:
        raise not_found("model file", name, "name")
    return file


def file_answer(file: ModelFile, wanted: str | None, if_range: str | None) -> StreamingResponse:
    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    return ranges.answer(
        partial(archives.read_file, file),
        file.size,
        file.etag,
        media_type="application/octet-stream",
        headers={"repr-digest": f"sha-256=:{digest}:"},
        wanted=wanted,
        if_range=if_range,
    )


def archive_answer(
    files: list[ModelFile], filename: str, wanted: str | None, if_range: str | None
) -> StreamingResponse:
    return ranges.answer(
        partial(archives.read, files),
        archives.size(files),
        archives.etag(files),
        media_type="application/x-tar",
        headers={"content-disposition": f'attachment; filename="{filename}"'},
        wanted=wanted,
        if_range=if_range,
    )
