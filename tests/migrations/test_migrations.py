"""The migrations and the models say the same, and rows that are there already are brought along."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import make_url

from migrations.upgrade import check, upgrade
from service.embedded.servers import Servers
from service.settings import MissingSettingError
from tests import factories


def test_models_and_migrations_agree(database: object) -> None:
    check()


def test_upgrading_again_changes_nothing(database: object) -> None:
    upgrade()
    check()


def test_the_owners_login_may_be_in_a_file(database: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "database_owner_url").write_text(f"{database.database_owner_url}\n")
    monkeypatch.delenv("DATABASE_OWNER_URL")
    with pytest.raises(MissingSettingError, match="DATABASE_OWNER_URL is not set"):
        upgrade()
    monkeypatch.setenv("TROLL_SECRETS_DIR", str(tmp_path))
    upgrade()


def test_a_database_of_a_newer_release_is_left_as_it_is(database: Servers, client: TestClient) -> None:
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        (newest,) = owner.execute("SELECT version_num FROM alembic_version").fetchone() or ("",)
        owner.execute("UPDATE alembic_version SET version_num = '9999'")
        try:
            upgrade()
            assert owner.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
            assert client.get("/v1/fine_tuning/jobs").status_code == 200
        finally:
            owner.execute("UPDATE alembic_version SET version_num = %s", [newest])


HYPERPARAMETERS_OF_0003 = {
    "batch_size": 2, "learning_rate_multiplier": 1.0, "n_epochs": 1, "compute_multiplier": 1.0, "eval_interval": 1,
    "eval_samples": 1, "reasoning_effort": "default", "objective": "troll", "kl_bound": 0.05, "alpha": 1.0,
    "max_tokens_kept": 64, "dropped_mass": 1e-05, "clip_low": 0.2, "clip_high": 0.2, "advantage": "grpo",
    "aggregation": "token-mean", "group_size": 8, "mini_batches": 2, "learning_rate": 1e-06, "weight_decay": 0.0,
    "max_grad_norm": 1.0, "warmup_steps": 0, "n_steps": 3, "temperature": 1.0, "eval_temperature": 1.0,
    "max_completion_tokens": 1024, "rollout_engine": "transformers", "old_policy": "trainer",
    "mismatch_correction": "sequence-mask", "mismatch_cap": 3.0,
}  # fmt: skip
"""As jobs of revision 0003 stored them, all of them there; fields that came later are not."""


@pytest.fixture
def older(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    """Another database of the cluster, which the test brings from one revision to the next."""
    url = make_url(servers.database_owner_url).set(database="older").render_as_string(hide_password=False)
    with psycopg.connect(servers.database_owner_url, autocommit=True) as owner:
        owner.execute("CREATE DATABASE older")
        monkeypatch.setenv("DATABASE_OWNER_URL", url)
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection
        owner.execute("DROP DATABASE older WITH (FORCE)")


def test_the_one_login_of_earlier_versions_is_parted_from_its_roles(older: psycopg.Connection) -> None:
    upgrade("0004")
    older.execute("CREATE ROLE troll LOGIN")
    older.execute("CREATE ROLE deputy")
    older.execute("GRANT troll_api, troll_worker, troll_operator TO troll")
    older.execute("GRANT troll_worker TO deputy WITH ADMIN OPTION")
    older.execute("GRANT troll_worker TO troll GRANTED BY deputy")
    try:
        upgrade("0005")
        query = (
            "SELECT roleid::regrole::text FROM pg_auth_members WHERE member IN ('troll'::regrole, 'deputy'::regrole)"
        )
        assert older.execute(query).fetchall() == []
    finally:
        older.execute("DROP ROLE troll, deputy")


def test_jobs_from_before_methods_are_read_as_reinforcement(
    client: TestClient, database: Servers, models_dir: Path
) -> None:
    job = factories.create_job(client, factories.offer_model(models_dir))
    older = """
        UPDATE fine_tuning_jobs SET spec = spec - 'version' - 'method' - 'integrations' || jsonb_build_object(
            'grader', spec -> 'method' -> 'grader', 'hyperparameters', %s::jsonb
        )
    """
    with psycopg.connect(database.database_owner_url, autocommit=True) as connection:
        connection.execute(older, [json.dumps(HYPERPARAMETERS_OF_0003)])
        (newest,) = connection.execute("SELECT version_num FROM alembic_version").fetchone() or ("",)
        connection.execute("UPDATE alembic_version SET version_num = '0003'")
        upgrade("0004")
        connection.execute("UPDATE alembic_version SET version_num = %s", [newest])
    found = client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
    assert found["method"]["reinforcement"]["grader"] == job["method"]["reinforcement"]["grader"]
    assert HYPERPARAMETERS_OF_0003.items() <= found["method"]["reinforcement"]["hyperparameters"].items()


def test_what_is_there_becomes_the_default_projects(older: psycopg.Connection) -> None:
    upgrade("0010")
    for number in (1, 2):
        for statement in (
            "INSERT INTO organizations (id, name) VALUES ('org-{n}', 'acme {n}')",
            "INSERT INTO api_keys (id, organization_id, name, hint, hash) VALUES ('k{n}', 'org-{n}', 'n', 'h', 'h{n}')",
            "INSERT INTO files (id, organization_id, filename, purpose, bytes, sha256) "
            "VALUES ('f{n}', 'org-{n}', 'f', 'p', 1, '')",
            "INSERT INTO fine_tuning_jobs (id, organization_id, status, spec, model, training_file, total_steps) "
            "VALUES ('j{n}', 'org-{n}', 'queued', '{{}}', 'm', 'f', 1)",
            "INSERT INTO tuned_models (id, organization_id, job_id, base_model, path) "
            "VALUES ('m{n}', 'org-{n}', 'j{n}', 'm', 'p')",
            "INSERT INTO kept_answers (organization_id, key, fingerprint) VALUES ('org-{n}', 'k', 'f')",
        ):
            older.execute(statement.format(n=number))
    upgrade("0011")
    for table in ("api_keys", "files", "fine_tuning_jobs", "tuned_models", "kept_answers"):
        found = older.execute(f"SELECT organization_id, project_id FROM {table} ORDER BY 1").fetchall()
        assert found == [("org-1", "proj_1"), ("org-2", "proj_2")], table
    names = older.execute("SELECT id, name FROM projects ORDER BY 1").fetchall()
    assert names == [("proj_1", "Default project"), ("proj_2", "Default project")]


def test_an_owner_that_is_no_superuser_brings_projects_along(servers: Servers, older: psycopg.Connection) -> None:
    """Row-level security holds for the owner of the tables too, so that it must be put aside for what is there."""
    upgrade("0010")
    older.execute("INSERT INTO organizations (id, name) VALUES ('org-1', 'acme')")
    older.execute("INSERT INTO kept_answers (organization_id, key, fingerprint) VALUES ('org-1', 'k', 'f')")
    older.execute("CREATE ROLE landlord CREATEROLE")
    try:
        owned = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        for (table,) in older.execute(owned).fetchall():
            older.execute(f"ALTER TABLE {table} OWNER TO landlord")
        older.execute("ALTER FUNCTION identify_caller(text, interval) OWNER TO landlord")
        older.execute("ALTER SCHEMA public OWNER TO landlord")
        url = make_url(os.environ["DATABASE_OWNER_URL"]).update_query_dict({"options": "-c role=landlord"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATABASE_OWNER_URL", url.render_as_string(hide_password=False))
            upgrade("0011")
        assert older.execute("SELECT project_id FROM kept_answers").fetchall() == [("proj_1",)]
    finally:
        older.execute("REASSIGN OWNED BY landlord TO postgres")
        older.execute("DROP OWNED BY landlord")
        older.execute("DROP ROLE landlord")


def test_tokens_that_were_used_before_are_the_projects_that_made_the_model(older: psycopg.Connection) -> None:
    upgrade("0013")
    for statement in (
        "INSERT INTO organizations (id, name) VALUES ('org-1', 'acme')",
        "INSERT INTO projects (id, organization_id, name) VALUES ('proj_2', 'org-1', 'second')",
        "INSERT INTO fine_tuning_jobs "
        "(id, organization_id, project_id, status, spec, model, training_file, total_steps) "
        "VALUES ('j', 'org-1', 'proj_2', 'succeeded', '{}', 'm', 'f', 1)",
        "INSERT INTO tuned_models (id, organization_id, project_id, job_id, base_model, path) "
        "VALUES ('ft:m', 'org-1', 'proj_2', 'j', 'm', 'p')",
        "INSERT INTO token_usage VALUES ('org-1', now(), 'ft:m', 1, 2, 3), ('org-1', now(), 'm', 4, 5, 6)",
    ):
        older.execute(statement)
    upgrade("0015")
    found = older.execute("SELECT project_id, model, requests, output_tokens FROM project_token_usage ORDER BY model")
    assert found.fetchall() == [("proj_2", "ft:m", 1, 3), ("proj_1", "m", 4, 6)]
