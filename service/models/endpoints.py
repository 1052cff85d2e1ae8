"""``/v1/models``"""

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from service.accounts.caller import Caller
from service.models import archive as archives
from service.models import service
from service.models.schemas import DeletedModel, ModelList, ModelObject

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
def list_models(caller: Caller) -> ModelList:
    """The operator's base models and your organisation's tuned models and checkpoints."""
    return ModelList(data=[_object(model) for model in service.available(caller.session)])


@router.get(
    "/{model:path}/archive",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}}},
)
def archive(caller: Caller, model: str) -> StreamingResponse:
    """The weights, tokenizer and configuration as a tar: a folder that ``from_pretrained`` loads."""
    folder = service.find(caller.session, model, param="model").path
    headers = {
        "content-length": str(archives.size(folder)),
        "content-disposition": 'attachment; filename="model.tar"',
    }
    return StreamingResponse(archives.stream(folder), media_type="application/x-tar", headers=headers)


@router.get("/{model:path}")
def retrieve(caller: Caller, model: str) -> ModelObject:
    return _object(service.find(caller.session, model, param="model"))


@router.delete("/{model:path}")
def delete(caller: Caller, model: str) -> DeletedModel:
    """Delete a tuned model or a checkpoint of your organisation, with its weights. Jobs keep its name."""
    service.delete(caller.session, model)
    return DeletedModel(id=model)


def _object(model: service.Model) -> ModelObject:
    return ModelObject(id=model.id, created=int(model.created_at.timestamp()), owned_by=model.owner)
