"""``/v1/models``"""

import base64
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse

from service.accounts.caller import Caller, Recognized, Route, identified
from service.accounts.known import Principal
from service.accounts.scopes import needs
from service.core import ranges
from service.core.errors import not_found
from service.core.threads import digest_threads
from service.models import archive as archives
from service.models import service
from service.models.schemas import DeletedModel, ModelFileObject, ModelFiles, ModelList, ModelObject

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=Route)

Range = Annotated[str | None, Header(alias="range", description="One range of bytes, to go on with a download.")]
IfRange = Annotated[str | None, Header(alias="if-range", description="An `ETag`: of another content all is sent.")]


def _binary(media_type: str) -> dict[int | str, dict[str, Any]]:
    content = {"content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}
    return {200: content, 206: {"description": "The part that `Range` asks for.", **content}}


@router.get("")
@needs("read")
def list_models(caller: Caller) -> ModelList:
    """The operator's base models and your organisation's tuned models and checkpoints."""
    return ModelList(data=[_object(model) for model in service.available(caller.session)])


@router.get("/{model:path}/files")
@needs("read")
async def list_files(recognized: Recognized, model: str) -> ModelFiles:
    """The files of a model, by name, with the checksums of their content."""
    return ModelFiles(data=[ModelFileObject.of(file) for file in await _files(recognized, model)])


@router.get(
    "/{model:path}/files/{name:path}", response_class=StreamingResponse, responses=_binary("application/octet-stream")
)
@needs("read")
async def read_file(
    recognized: Recognized, model: str, name: str, range_: Range = None, if_range: IfRange = None
) -> StreamingResponse:
    """One file of a model. Its `ETag` is its SHA-256, which `Repr-Digest` gives too."""
    file = next((file for file in await _files(recognized, model) if file.name == name), None)
    if file is None:
        raise not_found("model file", name, "name")
    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    return ranges.answer(
        partial(archives.read_file, file),
        file.size,
        file.etag,
        media_type="application/octet-stream",
        headers={"repr-digest": f"sha-256=:{digest}:"},
        wanted=range_,
        if_range=if_range,
    )


@router.get("/{model:path}/archive", response_class=StreamingResponse, responses=_binary("application/x-tar"))
@needs("read")
async def archive(
    recognized: Recognized, model: str, range_: Range = None, if_range: IfRange = None
) -> StreamingResponse:
    """The weights, tokenizer and configuration as a tar: a folder that ``from_pretrained`` loads."""
    files = await _files(recognized, model)
    return ranges.answer(
        partial(archives.read, files),
        archives.size(files),
        archives.etag(files),
        media_type="application/x-tar",
        headers={"content-disposition": 'attachment; filename="model.tar"'},
        wanted=range_,
        if_range=if_range,
    )


async def _files(recognized: Principal, model: str) -> list[archives.ModelFile]:
    found = await identified(recognized, partial(service.find, id=model, param="model"))
    return await digest_threads.run_to_end(recognized.organization_id, archives.contents, found.path)


@router.get("/{model:path}")
@needs("read")
def retrieve(caller: Caller, model: str) -> ModelObject:
    return _object(service.find(caller.session, model, param="model"))


@router.delete("/{model:path}")
@needs("manage")
def delete(caller: Caller, model: str) -> DeletedModel:
    """Delete a tuned model or a checkpoint of your organisation, with its weights. Jobs keep its name."""
    service.delete(caller.session, model)
    return DeletedModel(id=model)


def _object(model: service.Model) -> ModelObject:
    return ModelObject(id=model.id, created=int(model.created_at.timestamp()), owned_by=model.owner)
