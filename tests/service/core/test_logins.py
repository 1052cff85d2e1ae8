"""The walls between logins: none may become another, see what is not its own, or make anything in the database."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors, sql

from service.core import db
from service.embedded.servers import Servers
from service.settings import MissingSettingError, settings

OWNER = "postgres"


@pytest.fixture(params=db.LOGINS)
def role(request: pytest.FixtureRequest) -> db.Login:
    return request.param


@pytest.fixture
def connection(servers: Servers, role: db.Login) -> Iterator[psycopg.Connection]:
    """A connection as a thief of this login's password would have it."""
    with psycopg.connect(servers.database_url(role), autocommit=True) as connection:
        yield connection


def who(connection: psycopg.Connection) -> tuple[str, str]:
    row = connection.execute("SELECT session_user::text, current_user::text").fetchone()
    assert row is not None
    return row


@pytest.mark.parametrize(
    "way", ["SET ROLE {}", "SET SESSION ROLE {}", "SET LOCAL ROLE {}", "SET SESSION AUTHORIZATION {}"]
)
def test_a_login_becomes_no_other(connection: psycopg.Connection, role: db.Login, way: str) -> None:
    for other in {*db.LOGINS, OWNER} - {role}:
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(sql.SQL(way).format(sql.Identifier(other)))
        assert who(connection) == (role, role)


def test_there_is_nothing_to_go_back_to(connection: psycopg.Connection, role: db.Login) -> None:
    for way in ("SET ROLE NONE", "RESET ROLE", "RESET SESSION AUTHORIZATION", "RESET ALL", "DISCARD ALL"):
        connection.execute(way)
        assert who(connection) == (role, role)


def test_no_start_up_packet_makes_it_another(servers: Servers, role: db.Login) -> None:
    for other in {*db.LOGINS, OWNER} - {role}:
        with pytest.raises(psycopg.OperationalError, match="permission denied to set role"):
            psycopg.connect(servers.database_url(role), options=f"-c role={other}")


def test_a_login_is_a_member_of_nothing_and_has_no_members_but_the_owner(servers: Servers, role: db.Login) -> None:
    query = """
        SELECT given.rolname, member.rolname FROM pg_auth_members
        JOIN pg_roles given ON given.oid = roleid JOIN pg_roles member ON member.oid = pg_auth_members.member
        WHERE member.rolname = %(role)s OR (given.rolname = %(role)s AND member.rolname <> %(owner)s)
    """
    with psycopg.connect(servers.database_owner_url) as connection:
        assert connection.execute(query, {"role": role, "owner": OWNER}).fetchall() == []


FORBIDDEN = [
    "SELECT * FROM pg_authid",
    "SELECT * FROM pg_shadow",
    "SELECT passwd FROM pg_catalog.pg_user_mapping, pg_shadow",
    "SELECT * FROM pg_hba_file_rules",
    "SELECT pg_read_file('pg_hba.conf')",
    "COPY organizations TO PROGRAM 'cat'",
    "COPY organizations TO '/tmp/organizations'",
    "SELECT * FROM alembic_version",
    "CREATE TABLE public.mine (x int)",
    "CREATE VIEW public.mine AS SELECT 1",
    "CREATE SEQUENCE public.mine",
    "CREATE TYPE public.mine AS ENUM ('a')",
    "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
    "CREATE TEMPORARY TABLE mine (x int)",
    "CREATE TEMPORARY VIEW mine AS SELECT 1",
    "SELECT 1 INTO TEMPORARY mine",
    "CREATE SCHEMA mine",
    "CREATE DATABASE mine",
    "CREATE ROLE mine",
    "CREATE POLICY mine ON fine_tuning_jobs USING (true)",
    "CREATE RULE mine AS ON SELECT TO organizations DO INSTEAD SELECT 1",
    "CREATE TRIGGER mine BEFORE DELETE ON files EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "ALTER TABLE fine_tuning_jobs DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE fine_tuning_jobs NO FORCE ROW LEVEL SECURITY",
    "ALTER TABLE organizations OWNER TO CURRENT_USER",
    "DROP POLICY organizations_troll_api ON organizations",
    "DROP TABLE kept_answers",
    "TRUNCATE files CASCADE",
    "ALTER ROLE CURRENT_USER BYPASSRLS",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "ALTER ROLE CURRENT_USER CREATEROLE",
    "ALTER ROLE troll_api CREATEROLE",
    "GRANT troll_operator TO CURRENT_USER",
    "SET session_replication_role = replica",
    "SET log_statement = 'all'",
    "ALTER SYSTEM SET log_statement = 'all'",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
    "UPDATE organizations SET name = 'mine'",
    "DELETE FROM organizations",
    "UPDATE api_keys SET organization_id = ''",
    "UPDATE api_keys SET hash = ''",
    "DELETE FROM api_keys",
    "UPDATE fine_tuning_events SET message = ''",
    "DELETE FROM fine_tuning_jobs",
    "UPDATE api_keys SET project_id = NULL",
    "UPDATE projects SET organization_id = ''",
    "UPDATE audit_logs SET actor = '{}'",
    "DELETE FROM audit_logs",
]
REFUSALS = (errors.InsufficientPrivilege, errors.InvalidTableDefinition, errors.WrongObjectType)


def refused(connection: psycopg.Connection, statement: str) -> bool:
    try:
        connection.execute(statement)
    except REFUSALS:
        return True
    return False


def test_what_no_login_may_do(connection: psycopg.Connection) -> None:
    assert [statement for statement in FORBIDDEN if not refused(connection, statement)] == []


def test_no_login_passes_on_what_it_may_do(connection: psycopg.Connection) -> None:
    # For tables that a login may use this is a warning, not an error.
    for table in ("api_keys", "fine_tuning_jobs", "fine_tuning_events"):
        refused(connection, f"GRANT ALL ON {table} TO PUBLIC")
    query = (
        "SELECT count(*) FROM information_schema.table_privileges WHERE grantee = 'PUBLIC' AND table_schema = 'public'"
    )
    assert connection.execute(query).fetchone() == (0,)


def test_row_security_cannot_be_put_off(connection: psycopg.Connection, role: db.Login) -> None:
    connection.execute("SET row_security = off")
    with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
        connection.execute("SELECT id FROM api_keys" if role == "troll_operator" else "SELECT id FROM fine_tuning_jobs")


SECRETS = [
    "SELECT hash FROM api_keys",
    "SELECT salt FROM webhook_endpoints",
    "SELECT answer FROM kept_answers",
    "SELECT sealed_token FROM exports",
]
MAY_READ = {
    "troll_api": set(SECRETS),
    "troll_worker": set(),
    "troll_control": {SECRETS[1], SECRETS[3]},
    "troll_operator": {SECRETS[0]},
}


def test_secrets_are_for_those_who_use_them(connection: psycopg.Connection, role: db.Login) -> None:
    assert {query for query in SECRETS if not refused(connection, query)} == MAY_READ[role]


def tables(connection: psycopg.Connection, privilege: str) -> set[str]:
    """Tables of which the login has ``privilege`` on any column."""
    query = """
        SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
        AND (has_table_privilege(oid, %(privilege)s)
             OR %(privilege)s IN ('SELECT', 'INSERT', 'UPDATE') AND has_any_column_privilege(oid, %(privilege)s))
    """
    return {name for (name,) in connection.execute(query, {"privilege": privilege})}


MEMBERS = {"projects", "users", "project_users", "service_accounts"}
WRITES = {
    "troll_worker": {
        "INSERT": {
            "fine_tuning_events",
            "metric_blocks",
            "fine_tuning_checkpoints",
            "tuned_models",
            "files",
            "webhook_deliveries",
            "gpu_usage",
            "project_gpu_usage",
            "workers",
        },
        "UPDATE": {"fine_tuning_jobs", "fine_tuning_checkpoints", "gpu_usage", "project_gpu_usage", "workers"},
        "DELETE": {"fine_tuning_checkpoints"},
    },
    "troll_control": {
        "INSERT": {"fine_tuning_events", "webhook_deliveries"},
        "UPDATE": {"fine_tuning_jobs", "webhook_deliveries", "examinations", "exports", "installation"},
        "DELETE": {
            "files",
            "uploads",
            "kept_answers",
            "webhook_deliveries",
            "examinations",
            "exports",
            "workers",
            "checkpoint_permissions",
            "fine_tuning_events",
            "metric_blocks",
        },
    },
    "troll_operator": {
        "INSERT": {"organizations", "api_keys", "audit_logs", "organization_limits", "operators", *MEMBERS},
        "UPDATE": {"api_keys", "organizations", "workers", "organization_limits", *MEMBERS},
        "DELETE": {"project_users", "operators"},
    },
}


@pytest.mark.parametrize("role", ["troll_worker", "troll_control", "troll_operator"], indirect=True)
@pytest.mark.parametrize("privilege", ["INSERT", "UPDATE", "DELETE"])
def test_what_each_login_may_write(connection: psycopg.Connection, role: db.Login, privilege: str) -> None:
    assert tables(connection, privilege) == WRITES[role][privilege]


@pytest.mark.parametrize("role", ["troll_api", "troll_worker", "troll_operator"], indirect=True)
def test_events_are_not_for_others_to_remove(connection: psycopg.Connection) -> None:
    assert refused(connection, "DELETE FROM fine_tuning_events")


@pytest.mark.parametrize("role", ["troll_worker", "troll_control"], indirect=True)
def test_what_was_asked_for_is_not_for_workers_to_change(connection: psycopg.Connection) -> None:
    for column in ("organization_id", "spec", "model", "training_file", "metadata", "id", "created_at"):
        assert refused(connection, f"UPDATE fine_tuning_jobs SET {column} = {column}"), column


@pytest.mark.parametrize("role", ["troll_worker", "troll_control"], indirect=True)
def test_what_a_key_may_do_is_not_for_workers_to_change(connection: psycopg.Connection) -> None:
    assert refused(connection, "UPDATE api_keys SET scopes = NULL")


@pytest.fixture
def as_in_production(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The process has the login that ``DATABASE_URL`` names, as processes of the service do."""
    monkeypatch.setattr(db, "login_url", LOGIN_URL)
    db.engine.cache_clear()
    settings.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    db.engine.cache_clear()
    settings.cache_clear()


LOGIN_URL = db.login_url


def test_a_process_that_has_another_login_is_told(as_in_production: pytest.MonkeyPatch, servers: Servers) -> None:
    as_in_production.setenv("DATABASE_URL", servers.database_url("troll_api"))
    with db.transaction("troll_api"):
        pass
    with pytest.raises(
        db.WrongLoginError, match="for the login 'troll_api', and this process works as 'troll_control'"
    ):
        db.engine("troll_control")


def test_a_process_without_a_database_is_told(as_in_production: pytest.MonkeyPatch) -> None:
    as_in_production.delenv("DATABASE_URL", raising=False)
    with pytest.raises(MissingSettingError, match="DATABASE_URL is not set"):
        db.engine("troll_api")
