"""The migrations and the models say the same, and rows that are there already are brought along."""

from pathlib import Path

import psycopg
from fastapi.testclient import TestClient

from migrations.upgrade import check, upgrade
from service.embedded.servers import Servers
from tests import factories


def test_models_and_migrations_agree(database: object) -> None:
    check()


def test_upgrading_again_changes_nothing(database: object) -> None:
    upgrade()
    check()


def test_jobs_from_before_methods_are_read_as_reinforcement(
    client: TestClient, database: Servers, models_dir: Path
) -> None:
    job = factories.create_job(client, factories.offer_model(models_dir))
    older = """
        UPDATE fine_tuning_jobs SET spec = spec - 'method' - 'integrations' || jsonb_build_object(
            'grader', spec -> 'method' -> 'grader', 'hyperparameters', spec -> 'method' -> 'hyperparameters'
        )
    """
    with psycopg.connect(database.database_owner_url, autocommit=True) as connection:
        connection.execute(older)
        (newest,) = connection.execute("SELECT version_num FROM alembic_version").fetchone() or ("",)
        connection.execute("UPDATE alembic_version SET version_num = '0003'")
        upgrade("0004")
        connection.execute("UPDATE alembic_version SET version_num = %s", [newest])
    assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").json() == job
