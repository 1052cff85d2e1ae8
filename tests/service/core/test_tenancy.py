"""The two walls between tenants, each alone: queries are asked of the owner's rows, and row-level security holds even
for a query that forgot to ask whose.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.orm import Session

from migrations.tables import Base, Checkpoint, Job, TunedModel
from service.core.db import (
    LOGINS,
    Owner,
    WholeOrganization,
    across_organizations,
    bind,
    driver_url,
    tenant,
    transaction,
)
from service.embedded.servers import Servers
from tests import factories, tenants
from tests.conftest import Key
from tests.tenants import FIRST, FOREIGN, SECOND, Tenant

TENANT_TABLES = sorted(set(Base.metadata.tables) - {"organizations", "installation", "workers"})


@pytest.fixture
def job(client: TestClient, models_dir: Path) -> dict[str, Any]:
    return factories.create_job(client, factories.offer_model(models_dir))


def counts(session: Session) -> dict[str, int]:
    return {table: session.scalar(text(f"SELECT count(*) FROM {table}")) for table in TENANT_TABLES}


@pytest.mark.parametrize("table", sorted(Base.metadata.tables))
def test_every_table_forces_row_level_security(database: object, table: str) -> None:
    query = text(
        "SELECT relrowsecurity AND relforcerowsecurity AND EXISTS (SELECT 1 FROM pg_policy WHERE polrelid = c.oid) "
        "FROM pg_class c WHERE oid = to_regclass(:table)"
    )
    with transaction("troll_api") as session:
        assert session.scalar(query, {"table": table})


@pytest.mark.parametrize("table", TENANT_TABLES)
def test_every_tenant_table_names_its_organisation(table: str) -> None:
    assert "organization_id" in Base.metadata.tables[table].columns


def test_nobody_in_particular_sees_nothing(job: dict[str, Any]) -> None:
    with transaction("troll_api") as session:
        assert set(counts(session).values()) == {0}


def test_a_tenant_sees_its_own_rows(job: dict[str, Any]) -> None:
    with tenant(WholeOrganization(job["organization_id"])) as session:
        assert counts(session)["fine_tuning_jobs"] == 1


def test_a_tenant_sees_no_others_rows(job: dict[str, Any], new_key: Callable[..., Key]) -> None:
    with tenant(new_key(organization="globex")) as session:
        assert {table: count for table, count in counts(session).items() if count} == {"projects": 1}


def test_a_tenant_cannot_write_for_another(job: dict[str, Any], new_key: Callable[..., Key]) -> None:
    stranger = new_key(organization="globex")
    insert = text(
        "INSERT INTO files (id, organization_id, filename, purpose, bytes, sha256) "
        "VALUES ('file-x', :owner, 'x', 'fine-tune', 1, '')"
    )
    with pytest.raises(ProgrammingError, match="row-level security"), tenant(stranger) as session:
        session.execute(insert, {"owner": job["organization_id"]})


def test_the_name_of_the_organisation_does_not_outlive_its_transaction(job: dict[str, Any]) -> None:
    with tenant(WholeOrganization(job["organization_id"])):
        pass
    for _ in range(3):
        with transaction("troll_api") as session:
            assert counts(session)["fine_tuning_jobs"] == 0


@pytest.mark.parametrize("role", LOGINS)
def test_roles_own_nothing_and_bypass_nothing(database: object, role: str) -> None:
    query = text(
        "SELECT rolsuper OR rolbypassrls OR EXISTS (SELECT 1 FROM pg_tables WHERE tableowner = rolname) "
        "FROM pg_roles WHERE rolname = :role"
    )
    with transaction("troll_api") as session:
        assert session.scalar(query, {"role": role}) is False


def test_the_api_cannot_read_key_hashes_of_others(api_key: Key) -> None:
    with transaction("troll_api") as session:
        assert session.scalar(text("SELECT count(*) FROM api_keys")) == 0


# Every table


@pytest.fixture
def populated(database: Servers) -> Servers:
    """A row of each tenant in every table."""
    tenants.populate(database)
    return database


OF_A_PROJECT = {
    "files",
    "uploads",
    "upload_parts",
    "kept_answers",
    "project_token_usage",
    "project_gpu_usage",
    "fine_tuning_jobs",
    "fine_tuning_events",
    "metric_blocks",
    "fine_tuning_checkpoints",
    "tuned_models",
    "examinations",
    "exports",
    "webhook_endpoints",
    "webhook_deliveries",
}
OF_ADMINISTRATORS = {"users", "project_users", "service_accounts", "api_keys", "audit_logs"}
OF_AN_ORGANIZATION = {"gpu_usage", "operators", "organization_limits", "token_usage"}
"""Of which each project of an organisation sees the organisation's rows."""
OTHERS = {"projects", "checkpoint_permissions"}


def test_every_tenant_table_is_tried_here() -> None:
    assert set(TENANT_TABLES) == OF_A_PROJECT | OF_ADMINISTRATORS | OF_AN_ORGANIZATION | OTHERS


def rows(session: Session, table: str) -> list[str]:
    """Every row that a query without a condition finds, as text."""
    return [str(row) for row in session.execute(text(f"SELECT t.*::text FROM {table} t")).scalars()]


@pytest.mark.parametrize("owner", [FIRST, SECOND, FOREIGN], ids=lambda owner: owner.tag)
def test_a_query_that_forgets_the_filter_finds_the_projects_own_rows(populated: Servers, owner: Tenant) -> None:
    with tenant(owner) as session:
        for table in OF_A_PROJECT:
            (row,) = rows(session, table)
            assert f"-{owner.tag}" in row or owner.project_id in row, table
        assert all(owner.project_id in row for row in rows(session, "projects"))
        for table in OF_AN_ORGANIZATION:
            assert {owner.organization_id in row for row in rows(session, table)} == {True}, table
        assert [row for table in OF_ADMINISTRATORS for row in rows(session, table)] == []


def test_administrators_see_all_of_their_organisation_and_nothing_else(populated: Servers) -> None:
    with tenant(FIRST.whole) as session:
        for table in (OF_A_PROJECT | OF_ADMINISTRATORS) - {"gpu_usage"}:
            found = "".join(rows(session, table))
            mine = [f"-{each.tag}" in found or each.project_id in found for each in tenants.ALL]
            assert mine == [True, True, False], table


def seen_beyond(owner: Tenant) -> dict[str, set[str]]:
    """Organisations and jobs that PostgreSQL shows to ``owner`` when they look beyond their organisation."""
    with tenant(owner) as session:
        session.execute(text("SELECT set_config('app.operating', 'on', true)"))
        return {
            table: {str(id) for id in session.scalars(text(f"SELECT id FROM {table}"))}
            for table in ("organizations", "fine_tuning_jobs")
        }


def test_operators_see_the_names_and_unfinished_jobs_of_all_and_nobody_else_does(populated: Servers) -> None:
    with psycopg.connect(populated.database_owner_url, autocommit=True) as owner:
        owner.execute("DELETE FROM operators WHERE organization_id = %s", [FOREIGN.organization_id])
        owner.execute("UPDATE fine_tuning_jobs SET finished_at = now() WHERE id = 'job-foreign'")
    assert seen_beyond(FIRST.whole) == {
        "organizations": {FIRST.organization_id, FOREIGN.organization_id},
        "fine_tuning_jobs": {"job-first", "job-second"},
    }
    with psycopg.connect(populated.database_owner_url, autocommit=True) as owner:
        owner.execute("UPDATE fine_tuning_jobs SET finished_at = NULL WHERE id = 'job-foreign'")
    assert seen_beyond(FIRST.whole)["fine_tuning_jobs"] == {"job-first", "job-second", "job-foreign"}
    # A project's key is no administrator's, and another organisation does not operate anything.
    assert seen_beyond(FIRST) == {"organizations": {FIRST.organization_id}, "fine_tuning_jobs": {"job-first"}}
    assert seen_beyond(FOREIGN.whole) == {
        "organizations": {FOREIGN.organization_id},
        "fine_tuning_jobs": {"job-foreign"},
    }


def test_looking_beyond_ends_with_its_block(populated: Servers) -> None:
    with tenant(FIRST.whole) as session:
        with across_organizations(session):
            assert len(session.scalars(select(Job.id)).all()) == 3
        assert len(session.scalars(select(Job.id)).all()) == 2
        assert len(rows(session, "fine_tuning_jobs")) == 2


@pytest.mark.parametrize("table", sorted(OF_A_PROJECT - {"upload_parts", "fine_tuning_events", "webhook_deliveries"}))
@pytest.mark.parametrize("victim", [SECOND, FOREIGN], ids=lambda owner: owner.tag)
def test_no_statement_of_a_project_changes_anothers_rows(populated: Servers, table: str, victim: Tenant) -> None:
    """What the login may do at all, it does to none of them."""
    for statement in (f"UPDATE {table} SET project_id = project_id", f"DELETE FROM {table}"):
        with suppress(ProgrammingError), tenant(FIRST) as session:
            session.execute(text(f"{statement} WHERE project_id = :project"), {"project": victim.project_id})
    with tenant(victim) as session:
        assert len(rows(session, table)) == 1


@pytest.mark.parametrize("victim", [SECOND, FOREIGN], ids=lambda owner: owner.tag)
def test_a_project_writes_no_row_for_another(populated: Servers, victim: Tenant) -> None:
    statements = {
        "files": "(id, organization_id, project_id, filename, purpose, bytes, sha256) "
        "VALUES ('x', :org, :project, 'x', 'x', 1, '')",
        "fine_tuning_events": "(job_id, seq, organization_id, level, type, message) "
        "VALUES (:job, 9, :mine, 'info', 'message', 'x')",
        "upload_parts": "(id, organization_id, upload_id, bytes) VALUES ('x', :mine, :upload, 1)",
        "checkpoint_permissions": "(id, organization_id, source_project_id, checkpoint, project_id) "
        "VALUES ('x', :org, :project, 'c', :my_project)",
        "api_keys": "(id, organization_id, project_id, name, hint, hash) VALUES ('x', :org, :project, 'x', 'x', 'x')",
        "users": "(id, organization_id, email, name, role) VALUES ('x', :org, 'x', 'x', 'owner')",
        "projects": "(id, organization_id, name) VALUES ('x', :org, 'x')",
    }
    values = {
        "org": victim.organization_id,
        "project": victim.project_id,
        "job": f"job-{victim.tag}",
        "upload": f"uploads-{victim.tag}",
        "mine": FIRST.organization_id,
        "my_project": FIRST.project_id,
    }
    for table, row in statements.items():
        with pytest.raises(ProgrammingError, match="row-level security"), tenant(FIRST) as session:
            session.execute(text(f"INSERT INTO {table} {row}"), values)


@pytest.mark.parametrize("owner", [FIRST, SECOND, FOREIGN, FIRST.whole], ids=lambda owner: owner.project_id)
def test_queries_are_asked_of_the_owners_rows_even_where_row_level_security_is_not(
    populated: Servers, owner: Tenant
) -> None:
    """The first wall alone: the login that owns the tables is held back by nothing else."""
    engine = create_engine(driver_url(populated.database_owner_url))
    for mapper in Base.registry.mappers:
        kind = mapper.class_
        if kind.owned(owner) is None:
            continue
        with Session(engine) as session:
            everything = session.scalars(select(kind)).all()
            bind(session, owner)
            session.expunge_all()
            own = session.scalars(select(kind)).all()
            columns = session.execute(select(*(getattr(kind, each.key) for each in mapper.column_attrs))).all()
            number = session.scalar(select(func.count()).where(kind.organization_id.is_not(None)))
        assert (len(own), number) == (len(columns), len(columns)), kind
        assert {row.organization_id for row in own} <= {owner.organization_id}, kind
        if owner.project_id != FIRST.whole.project_id and kind.__tablename__ in OF_A_PROJECT:
            assert (len(own), len(everything)) == (1, 3), kind
    engine.dispose()


# Shared models


@pytest.mark.parametrize(
    ("kind", "name"),
    [(TunedModel, "ft:model-first"), (Checkpoint, "ft:ckpt-step-1-first")],
    ids=["model", "checkpoint"],
)
def test_a_shared_model_is_seen_by_the_project_it_is_shared_with_and_no_other(
    populated: Servers, kind: type[Base], name: str
) -> None:
    table = kind.__tablename__
    tenants.share(populated, name, FIRST, SECOND)
    with tenant(SECOND) as session:
        assert sum("-first" in row for row in rows(session, table)) == 1
        assert len(session.scalars(select(kind)).all()) == 2
        deleted = session.execute(text(f"DELETE FROM {table} WHERE organization_id = 'org-acme' RETURNING 1"))
        assert len(deleted.all()) == 1
        session.rollback()
    with tenant(FOREIGN) as session:
        assert len(rows(session, table)) == 1
        assert len(session.scalars(select(kind)).all()) == 1


def test_a_permission_that_names_another_organisations_project_gives_nothing(populated: Servers) -> None:
    tenants.share(populated, "ft:model-first", FIRST, FOREIGN)
    with tenant(FOREIGN) as session:
        assert len(rows(session, "tuned_models")) == 1
        assert len(session.scalars(select(TunedModel)).all()) == 1


# The release before


def acts_as_before(session: Session, owner: Owner) -> None:
    """As transactions of the release before say whose they are."""
    query = text("SELECT set_config('app.organization_id', :id, true)")
    session.execute(query, {"id": owner.organization_id})


def test_the_release_before_works_in_the_default_project(populated: Servers) -> None:
    insert = text(
        "INSERT INTO files (id, organization_id, filename, purpose, bytes, sha256) "
        "VALUES ('file-old', 'org-acme', 'f', 'fine-tune', 1, '')"
    )
    with transaction("troll_api") as session:
        acts_as_before(session, FIRST)
        session.execute(insert)
        assert {table: len(rows(session, table)) for table in OF_A_PROJECT - {"files"}} == dict.fromkeys(
            OF_A_PROJECT - {"files"}, 1
        )
        assert len(rows(session, "files")) == 2
    with tenant(FIRST) as session:
        assert any("file-old" in row for row in rows(session, "files"))


def test_what_workers_of_the_release_before_write_belongs_to_the_jobs_project(populated: Servers) -> None:
    insert = text(
        "INSERT INTO fine_tuning_checkpoints (id, job_id, organization_id, step, attempt, path, model, metrics) "
        "VALUES ('old', 'job-second', 'org-acme', 2, 1, 'p', 'm', '{}')"
    )
    with transaction("troll_worker") as session:
        session.execute(insert)
    with tenant(SECOND) as session:
        assert len(rows(session, "fine_tuning_checkpoints")) == 2


def test_keys_that_the_release_before_does_not_understand_are_none_to_it(new_key: Callable[..., Key]) -> None:
    from service.accounts import keys

    made = {
        "plain": new_key(),
        "of a project": new_key(project="second"),
        "with scopes": new_key(scopes=["read"]),
        "admin": new_key(admin=True),
    }
    found = {}
    for name, key in made.items():
        with transaction("troll_api") as session:
            query = text("SELECT count(*) FROM identify_caller(:hash, interval '1 minute')")
            found[name] = session.scalar(query, {"hash": keys.hashed(key.plain)})
    assert found == {"plain": 1, "of a project": 0, "with scopes": 0, "admin": 0}


def test_an_organisation_that_the_release_before_makes_has_a_default_project(database: Servers) -> None:
    with transaction("troll_operator") as session:
        session.execute(text("INSERT INTO organizations (id, name) VALUES ('org-new', 'new')"))
        session.execute(
            text(
                "INSERT INTO api_keys (id, organization_id, name, hint, hash) VALUES ('k', 'org-new', 'n', 'h', 'hash')"
            )
        )
        assert session.scalar(text("SELECT project_id FROM api_keys")) == "proj_new"
        assert session.scalar(text("SELECT name FROM projects")) == "Default project"


def test_an_admin_key_is_of_no_project(database: Servers) -> None:
    with transaction("troll_operator") as session:
        session.execute(text("INSERT INTO organizations (id, name) VALUES ('org-new', 'new')"))
    with pytest.raises(IntegrityError, match="api_keys_kind"), transaction("troll_operator") as session:
        session.execute(
            text(
                "INSERT INTO api_keys (id, kind, organization_id, project_id, name, hint, hash) "
                "VALUES ('k', 'admin', 'org-new', 'proj_new', 'n', 'h', 'hash')"
            )
        )
