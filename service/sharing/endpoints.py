"""``/v1/fine_tuning/checkpoints/{checkpoint}/permissions``"""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from service.accounts.caller import Caller, Route
from service.accounts.scopes import needs
from service.core.pagination import Page, page
from service.sharing import repository, service
from service.sharing.schemas import DeletedPermission, GivePermission, PermissionObject

router = APIRouter(prefix="/v1/fine_tuning/checkpoints", tags=["fine-tuning"], route_class=Route)

PATH = "/{fine_tuned_model_checkpoint:path}/permissions"


@router.post(PATH)
@needs("manage", "admin")
def give(caller: Caller, fine_tuned_model_checkpoint: str, body: GivePermission) -> Page[PermissionObject]:
    """Let other projects of the organisation use a tuned model or a checkpoint."""
    rows = service.give(caller.session, fine_tuned_model_checkpoint, body.project_ids)
    return page([PermissionObject.of(row) for row in rows], has_more=False)


@router.get(PATH)
@needs("manage", "admin")
def list_permissions(
    caller: Caller,
    fine_tuned_model_checkpoint: str,
    project_id: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    order: Literal["ascending", "descending"] = "descending",
) -> Page[PermissionObject]:
    service.own(caller.session, fine_tuned_model_checkpoint)
    rows, has_more = repository.page(
        caller.session,
        fine_tuned_model_checkpoint,
        project_id=project_id,
        after=after,
        limit=limit,
        ascending=order == "ascending",
    )
    return page([PermissionObject.of(row) for row in rows], has_more=has_more)


@router.delete(PATH + "/{permission_id}")
@needs("manage", "admin")
def take_back(caller: Caller, fine_tuned_model_checkpoint: str, permission_id: str) -> DeletedPermission:
    """Jobs that the other project has created from the model go on."""
    service.take_back(caller.session, fine_tuned_model_checkpoint, permission_id)
    return DeletedPermission(id=permission_id)
