"""``/v1/organization``: administering an organisation, with an admin key."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query

from service.accounts import repository as accounts
from service.accounts import service as key_service
from service.accounts.caller import Caller, Route
from service.accounts.models import APIKey
from service.accounts.scopes import needs
from service.accounts.service import KeyOwner
from service.administration import service
from service.administration.schemas import (
    AccountObject,
    AccountsKey,
    AccountWithKey,
    AddMember,
    AddUser,
    AdminKeyObject,
    AdminKeyWithValue,
    AuditLogObject,
    ChangeAccount,
    ChangeKey,
    ChangeMember,
    ChangeUser,
    Deleted,
    KeyObject,
    KeyWithValue,
    MakeAccount,
    MakeAccountsKey,
    MakeAdminKey,
    MakeKey,
    MemberObject,
    NameProject,
    ProjectObject,
    RotateKey,
    UserObject,
)
from service.audit import repository as audit
from service.core.db import within_project
from service.core.pagination import Page, page
from service.files import repository as files
from service.files import service as file_service
from service.files.schemas import DeletedFile, FileObject
from service.models import service as model_service
from service.models.schemas import DeletedModel, ModelList

router = APIRouter(prefix="/v1/organization", tags=["administration"], route_class=Route)

Limit = Annotated[int, Query(ge=1, le=100)]
Texts = list[Annotated[str, Query(max_length=320)]]
Moment = Annotated[int | None, Query(ge=0, le=253_402_300_799)]
"""Seconds of Unix time."""

PROJECT = "/projects/{project_id}"
MEMBER = PROJECT + "/users/{user_id}"
ACCOUNT = PROJECT + "/service_accounts/{service_account_id}"
KEY = PROJECT + "/api_keys/{api_key_id}"


def _lifetime(seconds: int | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


# Projects


@router.post("/projects")
@needs("admin")
def create_project(caller: Caller, body: NameProject) -> ProjectObject:
    organization_id = caller.principal.organization_id
    return ProjectObject.of(key_service.create_project(caller.session, organization_id, body.name))


@router.get("/projects")
@needs("admin")
def list_projects(
    caller: Caller, after: str | None = None, limit: Limit = 20, include_archived: bool = False
) -> Page[ProjectObject]:
    """Newest first."""
    rows, more = accounts.project_page(caller.session, archived=include_archived, after=after, limit=limit)
    return page([ProjectObject.of(row) for row in rows], has_more=more)


@router.get(PROJECT)
@needs("admin")
def retrieve_project(caller: Caller, project_id: str) -> ProjectObject:
    return ProjectObject.of(service.project(caller.session, project_id))


@router.post(PROJECT)
@needs("admin")
def rename_project(caller: Caller, project_id: str, body: NameProject) -> ProjectObject:
    return ProjectObject.of(service.rename_project(caller.session, project_id, body.name))


@router.post(PROJECT + "/archive")
@needs("admin")
def archive_project(caller: Caller, project_id: str) -> ProjectObject:
    """Its keys end at once, and its jobs are cancelled. It cannot be undone."""
    return ProjectObject.of(service.archive_project(caller.session, project_id))


# What archived projects store, which none of their own keys could delete any more


@router.get(PROJECT + "/files")
@needs("admin")
def list_files(caller: Caller, project_id: str, after: str | None = None, limit: Limit = 100) -> Page[FileObject]:
    """Files of an archived project, newest first."""
    service.archived_project(caller.session, project_id)
    with within_project(caller.session, project_id):
        rows, more = files.page(caller.session, purpose=None, after=after, limit=limit, ascending=False)
    return page([FileObject.of(row) for row in rows], has_more=more)


@router.delete(PROJECT + "/files/{file_id}")
@needs("admin")
def delete_file(caller: Caller, project_id: str, file_id: str) -> DeletedFile:
    """Delete a file of an archived project."""
    service.archived_project(caller.session, project_id)
    with within_project(caller.session, project_id):
        file_service.delete(caller.session, file_id)
    return DeletedFile(id=file_id)


@router.get(PROJECT + "/models")
@needs("admin")
def list_models(caller: Caller, project_id: str) -> ModelList:
    """Tuned models and checkpoints of an archived project, newest first."""
    return ModelList(data=service.models_of(caller.session, project_id))


@router.delete(PROJECT + "/models/{model:path}")
@needs("admin")
def delete_model(caller: Caller, project_id: str, model: str) -> DeletedModel:
    """Delete a tuned model or a checkpoint of an archived project, also for those that it is shared with."""
    service.archived_project(caller.session, project_id)
    with within_project(caller.session, project_id):
        model_service.delete(caller.session, model)
    return DeletedModel(id=model)


# Members of projects


@router.post(PROJECT + "/users")
@needs("admin")
def add_member(caller: Caller, project_id: str, body: AddMember) -> MemberObject:
    """Give a user of the organisation a role in the project."""
    row, user = service.add_member(caller.session, project_id, user_id=body.user_id, email=body.email, role=body.role)
    return MemberObject.of(row, user)


@router.get(PROJECT + "/users")
@needs("admin")
def list_members(caller: Caller, project_id: str, after: str | None = None, limit: Limit = 20) -> Page[MemberObject]:
    service.project(caller.session, project_id)
    rows, more = accounts.member_page(caller.session, project_id, after=after, limit=limit)
    return page([MemberObject.of(row, user) for row, user in rows], has_more=more)


@router.get(MEMBER)
@needs("admin")
def retrieve_member(caller: Caller, project_id: str, user_id: str) -> MemberObject:
    return MemberObject.of(*service.member(caller.session, project_id, user_id))


@router.post(MEMBER)
@needs("admin")
def change_member(caller: Caller, project_id: str, user_id: str, body: ChangeMember) -> MemberObject:
    return MemberObject.of(*service.change_member(caller.session, project_id, user_id, body.role))


@router.delete(MEMBER)
@needs("admin")
def remove_member(caller: Caller, project_id: str, user_id: str) -> Deleted:
    """The user's keys in the project end at once."""
    service.remove_member(caller.session, project_id, user_id)
    return Deleted(id=user_id, object="organization.project.user.deleted")


# Service accounts


@router.post(PROJECT + "/service_accounts")
@needs("admin")
def create_service_account(caller: Caller, project_id: str, body: MakeAccount) -> AccountWithKey:
    """An account of a program, with a key, which is shown in this answer only."""
    row, made = service.make_service_account(
        caller.session,
        project_id,
        body.name,
        with_key=not body.create_service_account_only,
        expires_in=_lifetime(body.expires_in_seconds),
    )
    key = None if made is None else AccountsKey.made(made[1], made[0])
    return AccountWithKey(**AccountObject.of(row).model_dump(), api_key=key)


@router.get(PROJECT + "/service_accounts")
@needs("admin")
def list_service_accounts(
    caller: Caller, project_id: str, after: str | None = None, limit: Limit = 20
) -> Page[AccountObject]:
    service.project(caller.session, project_id)
    rows, more = accounts.service_account_page(caller.session, project_id, after=after, limit=limit)
    return page([AccountObject.of(row) for row in rows], has_more=more)


@router.get(ACCOUNT)
@needs("admin")
def retrieve_service_account(caller: Caller, project_id: str, service_account_id: str) -> AccountObject:
    return AccountObject.of(service.service_account(caller.session, project_id, service_account_id))


@router.post(ACCOUNT)
@needs("admin")
def change_service_account(
    caller: Caller, project_id: str, service_account_id: str, body: ChangeAccount
) -> AccountObject:
    return AccountObject.of(
        service.change_service_account(caller.session, project_id, service_account_id, name=body.name, role=body.role)
    )


@router.delete(ACCOUNT)
@needs("admin")
def delete_service_account(caller: Caller, project_id: str, service_account_id: str) -> Deleted:
    """Its keys end at once."""
    service.delete_service_account(caller.session, project_id, service_account_id)
    return Deleted(id=service_account_id, object="organization.project.service_account.deleted")


@router.post(ACCOUNT + "/api_keys")
@needs("admin")
def create_account_key(caller: Caller, project_id: str, service_account_id: str, body: MakeAccountsKey) -> AccountsKey:
    """Another key of a service account, shown in this answer only."""
    plain, row = service.make_account_key(
        caller.session,
        project_id,
        service_account_id,
        name=body.name,
        scopes=body.scopes,
        expires_in=_lifetime(body.expires_in_seconds),
    )
    return AccountsKey.made(row, plain)


# Keys of projects


@router.post(PROJECT + "/api_keys")
@needs("admin")
def create_key(caller: Caller, project_id: str, body: MakeKey) -> KeyWithValue:
    """A key of a user, or of nobody, shown in this answer only."""
    plain, row = service.make_key(
        caller.session,
        project_id,
        user_id=body.user_id,
        name=body.name,
        scopes=body.scopes,
        expires_in=_lifetime(body.expires_in_seconds),
    )
    return _with_value(caller, row, plain)


@router.get(PROJECT + "/api_keys")
@needs("admin")
def list_keys(caller: Caller, project_id: str, after: str | None = None, limit: Limit = 20) -> Page[KeyObject]:
    service.project(caller.session, project_id)
    rows, more = accounts.key_page(caller.session, project_id, after=after, limit=limit)
    owners = service.owners(caller.session, rows)
    return page([KeyObject.of(row, *owner) for row, owner in zip(rows, owners, strict=True)], has_more=more)


@router.get(KEY)
@needs("admin")
def retrieve_key(caller: Caller, project_id: str, api_key_id: str) -> KeyObject:
    row = service.key(caller.session, project_id, api_key_id)
    return KeyObject.of(row, *service.owners(caller.session, [row])[0])


@router.post(KEY)
@needs("admin")
def change_key(caller: Caller, project_id: str, api_key_id: str, body: ChangeKey) -> KeyObject:
    """Another name, or other scopes, which hold from the key's next request on."""
    service.active_project(caller.session, project_id)
    service.key(caller.session, project_id, api_key_id)
    row = key_service.change_key(caller.session, api_key_id, body.model_dump(exclude_unset=True))
    return KeyObject.of(row, *service.owners(caller.session, [row])[0])


@router.post(KEY + "/rotate")
@needs("admin")
def rotate_key(caller: Caller, project_id: str, api_key_id: str, body: RotateKey | None = None) -> KeyWithValue:
    """A key in place of another, which is good for a day more unless the request says otherwise."""
    service.key(caller.session, project_id, api_key_id)
    seconds = None if body is None else body.overlap_seconds
    overlap = key_service.OVERLAP if seconds is None else timedelta(seconds=seconds)
    plain, row, _ = key_service.rotate_key(caller.session, api_key_id, overlap)
    return _with_value(caller, row, plain)


@router.delete(KEY)
@needs("admin")
def delete_key(caller: Caller, project_id: str, api_key_id: str) -> Deleted:
    """It ends at once."""
    service.key(caller.session, project_id, api_key_id)
    key_service.revoke_key(caller.session, api_key_id)
    return Deleted(id=api_key_id, object="organization.project.api_key.deleted")


def _with_value(caller: Caller, row: APIKey, plain: str) -> KeyWithValue:
    shown = KeyObject.of(row, *service.owners(caller.session, [row])[0])
    return KeyWithValue(**shown.model_dump(), value=plain)


# Users


@router.post("/users")
@needs("admin")
def add_user(caller: Caller, body: AddUser) -> UserObject:
    organization_id = caller.principal.organization_id
    return UserObject.of(
        service.add_user(caller.session, organization_id, email=body.email, name=body.name, role=body.role)
    )


@router.get("/users")
@needs("admin")
def list_users(
    caller: Caller,
    after: str | None = None,
    limit: Limit = 20,
    emails: Annotated[Texts | None, Query(alias="emails[]", max_length=100)] = None,
) -> Page[UserObject]:
    rows, more = accounts.user_page(caller.session, emails=emails or [], after=after, limit=limit)
    used = accounts.last_use(caller.session, [row.id for row in rows])
    return page([UserObject.of(row, used.get(row.id)) for row in rows], has_more=more)


@router.get("/users/{user_id}")
@needs("admin")
def retrieve_user(caller: Caller, user_id: str) -> UserObject:
    row = service.user(caller.session, user_id)
    return UserObject.of(row, accounts.last_use(caller.session, [user_id]).get(user_id))


@router.post("/users/{user_id}")
@needs("admin")
def change_user(caller: Caller, user_id: str, body: ChangeUser) -> UserObject:
    return UserObject.of(service.change_user(caller.session, user_id, body.role))


@router.delete("/users/{user_id}")
@needs("admin")
def delete_user(caller: Caller, user_id: str) -> Deleted:
    """Their keys end at once."""
    service.delete_user(caller.session, service.user(caller.session, user_id))
    return Deleted(id=user_id, object="organization.user.deleted")


# Admin keys


@router.post("/admin_api_keys")
@needs("admin")
def create_admin_key(caller: Caller, body: MakeAdminKey) -> AdminKeyWithValue:
    """Another admin key, shown in this answer only."""
    owner = KeyOwner(caller.principal.organization_id, None)
    plain, row = key_service.make_key(
        caller.session, owner, name=body.name, expires_in=_lifetime(body.expires_in_seconds)
    )
    return AdminKeyWithValue.of(row, value=plain)


@router.get("/admin_api_keys")
@needs("admin")
def list_admin_keys(
    caller: Caller, after: str | None = None, limit: Limit = 20, order: Literal["asc", "desc"] = "desc"
) -> Page[AdminKeyObject]:
    rows, more = accounts.key_page(caller.session, None, after=after, limit=limit, ascending=order == "asc")
    return page([AdminKeyObject.of(row) for row in rows], has_more=more)


@router.get("/admin_api_keys/{key_id}")
@needs("admin")
def retrieve_admin_key(caller: Caller, key_id: str) -> AdminKeyObject:
    return AdminKeyObject.of(service.key(caller.session, None, key_id))


@router.delete("/admin_api_keys/{key_id}")
@needs("admin")
def delete_admin_key(caller: Caller, key_id: str) -> Deleted:
    """It ends at once, even where it is the one that asks."""
    service.key(caller.session, None, key_id)
    key_service.revoke_key(caller.session, key_id)
    return Deleted(id=key_id, object="organization.admin_api_key.deleted")


# The audit log


@router.get("/audit_logs")
@needs("admin")
def list_audit_logs(
    caller: Caller,
    after: str | None = None,
    before: str | None = None,
    limit: Limit = 20,
    event_types: Annotated[Texts | None, Query(alias="event_types[]", max_length=100)] = None,
    project_ids: Annotated[Texts | None, Query(alias="project_ids[]", max_length=100)] = None,
    actor_ids: Annotated[Texts | None, Query(alias="actor_ids[]", max_length=100)] = None,
    actor_emails: Annotated[Texts | None, Query(alias="actor_emails[]", max_length=100)] = None,
    resource_ids: Annotated[Texts | None, Query(alias="resource_ids[]", max_length=100)] = None,
    later_than: Annotated[Moment, Query(alias="effective_at[gt]")] = None,
    since: Annotated[Moment, Query(alias="effective_at[gte]")] = None,
    earlier_than: Annotated[Moment, Query(alias="effective_at[lt]")] = None,
    until: Annotated[Moment, Query(alias="effective_at[lte]")] = None,
) -> Page[AuditLogObject]:
    """What was changed by whom, newest first."""
    bounds = {"gt": later_than, "gte": since, "lt": earlier_than, "lte": until}
    wanted = audit.Wanted(
        types=event_types or [],
        project_ids=project_ids or [],
        actor_ids=actor_ids or [],
        actor_emails=actor_emails or [],
        object_ids=resource_ids or [],
        bounds=[(how, datetime.fromtimestamp(at, UTC)) for how, at in bounds.items() if at is not None],
    )
    rows, more = audit.page(caller.session, wanted, after=after, before=before, limit=limit)
    return page([AuditLogObject.of(row) for row in rows], has_more=more)
