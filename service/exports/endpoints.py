"""``/v1/models/{model}/exports``"""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from service.accounts.caller import Caller, Recognized, Route, identified
from service.accounts.known import Principal
from service.accounts.scopes import needs
from service.core.pagination import Page, page
from service.core.threads import digest_threads
from service.exports import repository, service
from service.exports.schemas import CreateExport, DeletedExport, ExportObject
from service.idempotency.once import Once
from service.models import archive as archives
from service.models.download import BINARY, TAR, IfRange, Range, archive_answer, file_answer, file_named
from service.models.schemas import ModelFileObject, ModelFiles

router = APIRouter(prefix="/v1/models", tags=["exports"], route_class=Route)


@router.post("/{model:path}/exports")
@needs("submit")
def create(caller: Caller, once: Once, model: str, body: CreateExport) -> ExportObject:
    """Have a model put into another form: a folder, an adapter or a GGUF file, to download or on a hub."""
    return once.run(
        caller.session,
        body.model_dump(mode="json"),
        ExportObject,
        lambda: ExportObject.of(service.create(caller.session, caller.principal, model, body)),
    )


@router.get("/{model:path}/exports")
@needs("read")
def list_exports(
    caller: Caller, model: str, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> Page[ExportObject]:
    """Your project's exports of a model, newest first. They outlive the model itself."""
    rows, has_more = repository.page(caller.session, model, after=after, limit=limit)
    return page([ExportObject.of(row) for row in rows], has_more=has_more)


@router.get("/{model:path}/exports/{export_id}")
@needs("read")
def retrieve(caller: Caller, model: str, export_id: str) -> ExportObject:
    return ExportObject.of(service.retrieve(caller.session, model, export_id))


@router.delete("/{model:path}/exports/{export_id}")
@needs("manage")
def delete(caller: Caller, model: str, export_id: str) -> DeletedExport:
    """Remove an export with its files; one that is not finished is called off."""
    service.delete(caller.session, model, export_id)
    return DeletedExport(id=export_id)


@router.get("/{model:path}/exports/{export_id}/content", response_class=StreamingResponse, responses=TAR)
@needs("read")
async def content(
    recognized: Recognized, model: str, export_id: str, range_: Range = None, if_range: IfRange = None
) -> StreamingResponse:
    """All files as one tar, whose SHA-256 is the export's."""
    return archive_answer(await _files(recognized, model, export_id), "export.tar", range_, if_range)


@router.get("/{model:path}/exports/{export_id}/files")
@needs("read")
async def list_files(recognized: Recognized, model: str, export_id: str) -> ModelFiles:
    """The files of an export, by name, with the checksums of their content."""
    return ModelFiles(data=[ModelFileObject.of(file) for file in await _files(recognized, model, export_id)])


@router.get("/{model:path}/exports/{export_id}/files/{name:path}", response_class=StreamingResponse, responses=BINARY)
@needs("read")
async def read_file(
    recognized: Recognized, model: str, export_id: str, name: str, range_: Range = None, if_range: IfRange = None
) -> StreamingResponse:
    """One file of an export. Its `ETag` is its SHA-256, which `Repr-Digest` gives too."""
    return file_answer(file_named(await _files(recognized, model, export_id), name), range_, if_range)


async def _files(recognized: Principal, model: str, export_id: str) -> list[archives.ModelFile]:
    folder = await identified(recognized, partial(service.content, model=model, id=export_id))
    return await digest_threads.run_to_end(recognized.organization_id, archives.contents, folder)
