"""The second wall between organisations: row-level security holds even for a query that forgot to ask whose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from migrations.tables import Base
from service.core.db import ROLES, tenant, transaction
from tests import factories
from tests.conftest import Key

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
    with tenant(job["organization_id"]) as session:
        assert counts(session)["fine_tuning_jobs"] == 1


def test_a_tenant_sees_no_others_rows(job: dict[str, Any], new_key: Callable[..., Key]) -> None:
    with tenant(new_key(organization="globex").organization_id) as session:
        assert {table: count for table, count in counts(session).items() if count} == {"api_keys": 1}


def test_a_tenant_cannot_write_for_another(job: dict[str, Any], new_key: Callable[..., Key]) -> None:
    stranger = new_key(organization="globex").organization_id
    insert = text(
        "INSERT INTO files (id, organization_id, filename, purpose, bytes, sha256) "
        "VALUES ('file-x', :owner, 'x', 'fine-tune', 1, '')"
    )
    with pytest.raises(ProgrammingError, match="row-level security"), tenant(stranger) as session:
        session.execute(insert, {"owner": job["organization_id"]})


def test_the_name_of_the_organisation_does_not_outlive_its_transaction(job: dict[str, Any]) -> None:
    with tenant(job["organization_id"]):
        pass
    for _ in range(3):
        with transaction("troll_api") as session:
            assert counts(session)["fine_tuning_jobs"] == 0


@pytest.mark.parametrize("role", ROLES)
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
