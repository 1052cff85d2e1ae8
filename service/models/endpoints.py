"""``/v1/models``"""

from functools import partial

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from service.accounts.caller import Caller, Recognized, Route, identified
from service.accounts.known import Principal
from service.accounts.scopes import needs
from service.core.threads import digest_threads
from service.models import archive as archives
from service.models import service
from service.models.download import BINARY, TAR, IfRange, Range, archive_answer, file_answer, file_named
from service.models.schemas import DeletedModel, ModelFileObject, ModelFiles, ModelList, ModelObject

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=Route)


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


@router.get("/{model:path}/files/{name:path}", response_class=StreamingResponse, responses=BINARY)
@needs("read")
async def read_file(
    recognized: Recognized, model: str, name: str, range_: Range = None, if_range: IfRange = None
) -> StreamingResponse:
    """One file of a model. Its `ETag` is its SHA-256, which `Repr-Digest` gives too."""
    return file_answer(file_named(await _files(recognized, model), name), range_, if_range)


@router.get("/{model:path}/archive", response_class=StreamingResponse, responses=TAR)
@needs("read")
async def archive(
    recognized: Recognized, model: str, range_: Range = None, if_range: IfRange = None
) -> StreamingResponse:
    """The weights, tokenizer and configuration as a tar: a folder that ``from_pretrained`` loads."""
    return archive_answer(await _files(recognized, model), "model.tar", range_, if_range)


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
