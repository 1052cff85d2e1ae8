"""Projects within organisations, users, service accounts, scopes of keys, shared models and the audit log.

What the release before wrote, and writes while it is replaced, belongs to its organisation's default project: triggers
see to that. Its API acts for the default one where it names none, and knows only keys that may do all there.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.access import EVERY, OWN, PROJECT, SETTING, allow

revision = "0011"
down_revision = "0010"

OF_PROJECT = (
    "files",
    "uploads",
    "fine_tuning_jobs",
    "fine_tuning_checkpoints",
    "tuned_models",
    "examinations",
    "webhook_endpoints",
    "kept_answers",
)
"""Tables whose rows name their project."""
PARENTS = {
    "fine_tuning_events": ("job_id", "fine_tuning_jobs"),
    "upload_parts": ("upload_id", "uploads"),
    "webhook_deliveries": ("endpoint_id", "webhook_endpoints"),
}
"""Tables whose rows are of the project that another row is of: there are many of them, and none is changed for this."""


def upgrade() -> None:
    create_projects()
    create_members()
    extend_keys()
    name_projects()
    wall_projects()
    share_models()
    create_audit_log()
    create_functions()


def identified(table: str, *columns: sa.Column[Any] | sa.Constraint) -> None:
    op.create_table(
        table,
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, sa.Identity(always=True), nullable=False, unique=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), nullable=False),
        *columns,
    )


def time(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True))


def text(name: str, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.Text, **{"nullable": False, **options})


def project(**options: Any) -> sa.Column[Any]:
    return sa.Column("project_id", sa.Text, sa.ForeignKey("projects.id"), **{"nullable": False, **options})


def create_projects() -> None:
    op.add_column("organizations", time("deleted_at"))
    op.execute("GRANT UPDATE (deleted_at) ON organizations TO troll_operator")
    # The name of one that was deleted is free again.
    op.drop_constraint("organizations_name_key", "organizations")
    op.create_index(
        "organizations_named", "organizations", ["name"], unique=True, postgresql_where=sa.text("deleted_at IS NULL")
    )
    identified("projects", text("name"), time("archived_at"))
    op.create_index("projects_of_organization", "projects", ["organization_id", "sequence"])
    op.execute("""
        CREATE FUNCTION default_project(organization_id text) RETURNS text
        LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT 'proj_' || regexp_replace(organization_id, '^org-', '') $$
    """)
    op.execute("ALTER TABLE organizations NO FORCE ROW LEVEL SECURITY")
    op.execute("""
        INSERT INTO projects (id, organization_id, name, created_at)
        SELECT default_project(id), id, 'Default project', created_at FROM organizations ORDER BY created_at, id
    """)
    op.execute("ALTER TABLE organizations FORCE ROW LEVEL SECURITY")
    own = f"{OWN} AND ({SETTING} = '*' OR id = {SETTING})"
    allow(
        "projects",
        own=own,
        troll_api="SELECT, INSERT, UPDATE (name, archived_at)",
        troll_operator="SELECT, INSERT, UPDATE (name, archived_at)",
        # It sees to it that nothing runs for what has ended.
        troll_control="SELECT",
    )
    op.execute("GRANT SELECT (organization_id) ON files TO troll_control")
    op.execute("""
        CREATE FUNCTION make_default_project() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO projects (id, organization_id, name)
            VALUES (default_project(NEW.id), NEW.id, 'Default project');
            RETURN NEW;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER make_default_project AFTER INSERT ON organizations
        FOR EACH ROW EXECUTE FUNCTION make_default_project()
    """)


def create_members() -> None:
    identified(
        "users",
        text("email"),
        text("name"),
        text("role"),
        time("deleted_at"),
        sa.CheckConstraint("role IN ('owner', 'reader')", name="users_role"),
    )
    op.create_index(
        "users_once",
        "users",
        ["organization_id", sa.text("lower(email)")],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "project_users",
        sa.Column("sequence", sa.BigInteger, sa.Identity(always=True), nullable=False, unique=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("project_id", sa.Text, sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), primary_key=True),
        text("role"),
        sa.CheckConstraint("role IN ('owner', 'member', 'reader')", name="project_users_role"),
    )
    identified(
        "service_accounts",
        project(),
        text("name"),
        text("role"),
        time("deleted_at"),
        sa.CheckConstraint("role IN ('owner', 'member', 'reader', 'none')", name="service_accounts_role"),
    )
    allow(
        "users",
        own=EVERY,
        troll_api="SELECT, INSERT, UPDATE (name, role, deleted_at)",
        troll_operator="SELECT, INSERT, UPDATE (name, role, deleted_at)",
    )
    allow(
        "project_users",
        own=EVERY,
        troll_api="SELECT, INSERT, UPDATE (role), DELETE",
        troll_operator="SELECT, INSERT, UPDATE (role), DELETE",
    )
    allow(
        "service_accounts",
        own=EVERY,
        troll_api="SELECT, INSERT, UPDATE (name, role, deleted_at)",
        troll_operator="SELECT, INSERT, UPDATE (name, role, deleted_at)",
    )


def extend_keys() -> None:
    op.add_column("api_keys", text("kind", server_default="project"))
    op.add_column("api_keys", project(nullable=True))
    op.add_column("api_keys", sa.Column("scopes", JSONB))
    op.add_column("api_keys", sa.Column("user_id", sa.Text, sa.ForeignKey("users.id")))
    op.add_column("api_keys", sa.Column("service_account_id", sa.Text, sa.ForeignKey("service_accounts.id")))
    op.execute("ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY")
    op.execute("UPDATE api_keys SET project_id = default_project(organization_id)")
    op.execute("ALTER TABLE api_keys FORCE ROW LEVEL SECURITY")
    op.create_check_constraint(
        "api_keys_kind", "api_keys", "kind IN ('project', 'admin') AND (kind = 'admin') = (project_id IS NULL)"
    )
    op.execute("""
        CREATE FUNCTION key_of_default_project() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.project_id := default_project(NEW.organization_id);
            RETURN NEW;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER key_of_default_project BEFORE INSERT ON api_keys FOR EACH ROW
        WHEN (NEW.project_id IS NULL AND NEW.kind = 'project') EXECUTE FUNCTION key_of_default_project()
    """)
    # A key sees itself; administrators, and the release before, see all of their organisation.
    own = f"hash = current_setting('app.key_hash', true) OR ({OWN} AND {SETTING} IN ('*', ''))"
    allow(
        "api_keys",
        own=own,
        troll_api="SELECT, INSERT, UPDATE (last_used_at, expires_at, revoked_at)",
        troll_operator="SELECT, INSERT, UPDATE (expires_at, revoked_at)",
    )


def name_projects() -> None:
    """Rows that are there are the default project's; so are those that name none, unless the transaction does."""
    op.execute("""
        CREATE FUNCTION row_of_project() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.project_id := coalesce(
                nullif(nullif(current_setting('app.project_id', true), ''), '*'), default_project(NEW.organization_id)
            );
            RETURN NEW;
        END $$
    """)
    op.execute("""
        CREATE FUNCTION row_of_jobs_project() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.project_id := (SELECT job.project_id FROM fine_tuning_jobs job WHERE job.id = NEW.job_id);
            RETURN NEW;
        END $$
    """)
    for table in OF_PROJECT:
        op.add_column(table, sa.Column("project_id", sa.Text))
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"UPDATE {table} SET project_id = default_project(organization_id)")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.alter_column(table, "project_id", existing_type=sa.Text, nullable=False)
        op.create_foreign_key(f"{table}_project_id_fkey", table, "projects", ["project_id"], ["id"])
        function = "row_of_jobs_project" if table in ("fine_tuning_checkpoints", "tuned_models") else "row_of_project"
        op.execute(f"""
            CREATE TRIGGER row_of_project BEFORE INSERT ON {table} FOR EACH ROW
            WHEN (NEW.project_id IS NULL) EXECUTE FUNCTION {function}()
        """)
    op.create_index("jobs_of_project", "fine_tuning_jobs", ["project_id", "sequence"])
    op.create_index(
        "jobs_unfinished", "fine_tuning_jobs", ["project_id"], postgresql_where=sa.text("finished_at IS NULL")
    )
    op.create_index("files_of_project", "files", ["project_id", "sequence"])
    op.execute("GRANT SELECT (project_id) ON webhook_endpoints TO troll_worker")


def wall(table: str, condition: str) -> None:
    """Let the API see the rows for which ``condition`` holds."""
    op.execute(f"DROP POLICY {table}_troll_api ON {table}")
    op.execute(f"CREATE POLICY {table}_troll_api ON {table} TO troll_api USING ({condition}) WITH CHECK ({condition})")


def wall_projects() -> None:
    for table in OF_PROJECT:
        wall(table, PROJECT)
    for table, (column, parent) in PARENTS.items():
        # The parent's own policy holds within.
        wall(table, f"{OWN} AND EXISTS (SELECT 1 FROM {parent} parent WHERE parent.id = {table}.{column})")


def share_models() -> None:
    identified(
        "checkpoint_permissions",
        sa.Column("source_project_id", sa.Text, sa.ForeignKey("projects.id"), nullable=False),
        text("checkpoint"),
        project(),
    )
    op.create_index("checkpoint_permissions_once", "checkpoint_permissions", ["checkpoint", "project_id"], unique=True)
    op.create_index("checkpoint_permissions_of_project", "checkpoint_permissions", ["project_id"])
    source = f"{OWN} AND {SETTING} IN ('*', source_project_id)"
    allow("checkpoint_permissions", own=source, troll_api="SELECT, INSERT, DELETE")
    # A worker keeps checkpoints that are shared; the control worker forgets who might use what is gone.
    allow("checkpoint_permissions", troll_worker="SELECT (id, checkpoint)", troll_control="SELECT, DELETE")
    mine = f"{OWN} AND project_id = {SETTING}"
    op.execute(
        f"CREATE POLICY checkpoint_permissions_given ON checkpoint_permissions FOR SELECT TO troll_api USING ({mine})"
    )
    for table, name in (("tuned_models", "id"), ("fine_tuning_checkpoints", "model")):
        shared = (
            "EXISTS (SELECT 1 FROM checkpoint_permissions given "
            f"WHERE given.checkpoint = {table}.{name} AND given.project_id = {SETTING})"
        )
        op.execute(f"CREATE POLICY {table}_shared ON {table} FOR SELECT TO troll_api USING ({OWN} AND {shared})")


def create_audit_log() -> None:
    identified(
        "audit_logs",
        project(nullable=True),
        text("type"),
        sa.Column("actor", JSONB, nullable=False),
        text("actor_id", nullable=True),
        text("actor_email", nullable=True),
        text("object_id", nullable=True),
        sa.Column("details", JSONB, nullable=False),
        text("address", nullable=True),
        text("request_id", nullable=True),
    )
    op.create_index("audit_logs_of_organization", "audit_logs", ["organization_id", "sequence"])
    # Nobody changes or removes what is written there.
    allow("audit_logs", own=EVERY, troll_api="SELECT, INSERT", troll_operator="SELECT, INSERT")
    op.execute(f"CREATE POLICY audit_logs_write ON audit_logs FOR INSERT TO troll_api WITH CHECK ({OWN})")


IDENTIFY = "identify_key(presented_hash text, touch_every interval)"
OF_THE_RELEASE_BEFORE = "identify_caller(presented_hash text, touch_every interval)"
TOUCH = """
            IF used_at IS NULL OR used_at < now() - touch_every THEN
                -- Many requests may find this at once; one of them writes it down, and none waits for another.
                PERFORM 1 FROM api_keys k WHERE k.id = found_key FOR NO KEY UPDATE SKIP LOCKED;
                IF FOUND THEN
                    UPDATE api_keys k SET last_used_at = now() WHERE k.id = found_key;
                END IF;
            END IF;
"""


def create_functions() -> None:
    """They run with the rights of whoever asks, so that row-level security holds inside as well."""
    op.execute(f"""
        CREATE FUNCTION {IDENTIFY}
        RETURNS TABLE (
            key_id text, organization_id text, organization_name text, project_id text, key_scopes jsonb,
            user_id text, user_email text, service_account_id text, owner_role text
        )
        LANGUAGE plpgsql SECURITY INVOKER AS $$
        #variable_conflict use_column
        DECLARE
            found_key text; found_organization text; found_project text; used_at timestamptz; found_scopes jsonb;
            found_user text; found_account text; found_email text; found_role text; found_name text; membership text;
        BEGIN
            PERFORM set_config('app.key_hash', presented_hash, true);
            SELECT k.id, k.organization_id, k.project_id, k.last_used_at, k.scopes, k.user_id, k.service_account_id
            INTO found_key, found_organization, found_project, used_at, found_scopes, found_user, found_account
            FROM api_keys k
            WHERE k.hash = presented_hash AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now());
            IF NOT FOUND THEN
                RETURN;
            END IF;
            PERFORM set_config('app.organization_id', found_organization, true);
            PERFORM set_config('app.project_id', '*', true);
            SELECT o.name INTO found_name FROM organizations o
            WHERE o.id = found_organization AND o.deleted_at IS NULL
            AND (found_project IS NULL
                OR EXISTS (SELECT 1 FROM projects p WHERE p.id = found_project AND p.archived_at IS NULL));
            IF found_user IS NOT NULL THEN
                SELECT u.email, u.role, m.role INTO found_email, found_role, membership FROM users u
                LEFT JOIN project_users m ON m.user_id = u.id AND m.project_id = found_project
                WHERE u.id = found_user AND u.deleted_at IS NULL;
                found_role := CASE found_role WHEN 'owner' THEN 'owner' ELSE coalesce(membership, 'none') END;
            ELSIF found_account IS NOT NULL THEN
                SELECT CASE WHEN s.deleted_at IS NULL THEN s.role ELSE 'none' END INTO found_role
                FROM service_accounts s WHERE s.id = found_account;
            END IF;
            PERFORM set_config('app.project_id', coalesce(found_project, '*'), true);
            IF found_name IS NULL THEN
                PERFORM set_config('app.organization_id', '', true);
                RETURN;
            END IF;
            {TOUCH}
            RETURN QUERY SELECT found_key, found_organization, found_name, found_project, found_scopes,
                found_user, found_email, found_account, found_role;
        END $$
    """)
    op.execute(f"REVOKE ALL ON FUNCTION {IDENTIFY} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {IDENTIFY} TO troll_api")
    op.execute(f"""
        CREATE OR REPLACE FUNCTION {OF_THE_RELEASE_BEFORE}
        RETURNS TABLE (key_id text, organization_id text, organization_name text)
        LANGUAGE plpgsql SECURITY INVOKER AS $$
        #variable_conflict use_column
        DECLARE
            found_key text; found_organization text; used_at timestamptz;
        BEGIN
            PERFORM set_config('app.key_hash', presented_hash, true);
            SELECT k.id, k.organization_id, k.last_used_at INTO found_key, found_organization, used_at FROM api_keys k
            WHERE k.hash = presented_hash AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
            AND k.project_id = default_project(k.organization_id)
            AND k.scopes IS NULL AND k.user_id IS NULL AND k.service_account_id IS NULL;
            IF NOT FOUND THEN
                RETURN;
            END IF;
            PERFORM set_config('app.organization_id', found_organization, true);
            {TOUCH}
            RETURN QUERY SELECT found_key, o.id, o.name FROM organizations o
            WHERE o.id = found_organization AND o.deleted_at IS NULL;
        END $$
    """)
