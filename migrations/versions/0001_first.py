"""Organisations, keys, files, jobs, events, checkpoints, models; roles and row-level security."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

TENANT_TABLES = (
    "api_keys",
    "files",
    "fine_tuning_jobs",
    "fine_tuning_events",
    "fine_tuning_checkpoints",
    "tuned_models",
)

GRANTS = {
    "troll_api": {
        "organizations": "SELECT",
        "api_keys": "SELECT, UPDATE (last_used_at)",
        "files": "SELECT, INSERT, DELETE",
        "fine_tuning_jobs": "SELECT, INSERT, UPDATE",
        "fine_tuning_events": "SELECT, INSERT",
        "fine_tuning_checkpoints": "SELECT",
        "tuned_models": "SELECT",
    },
    "troll_worker": {
        "organizations": "SELECT",
        "files": "SELECT, INSERT, DELETE",
        "fine_tuning_jobs": "SELECT, UPDATE",
        "fine_tuning_events": "SELECT, INSERT",
        "fine_tuning_checkpoints": "SELECT, INSERT, UPDATE, DELETE",
        "tuned_models": "SELECT, INSERT",
    },
    "troll_operator": {
        "organizations": "SELECT, INSERT",
        "api_keys": "SELECT, INSERT, UPDATE",
    },
}


def upgrade() -> None:
    create_tables()
    create_roles()
    secure_rows()


def created_at() -> sa.Column[Any]:
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)


def sequence() -> sa.Column[Any]:
    return sa.Column("sequence", sa.BigInteger, sa.Identity(always=True), nullable=False, unique=True)


def organization() -> sa.Column[Any]:
    return sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), nullable=False)


def job() -> sa.Column[Any]:
    return sa.Column("job_id", sa.Text, sa.ForeignKey("fine_tuning_jobs.id"), nullable=False)


def time(name: str, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), **options)


def create_tables() -> None:
    op.create_table(
        "organizations",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        created_at(),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sequence(),
        created_at(),
        organization(),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("hint", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False, unique=True),
        time("last_used_at"),
        time("expires_at"),
        time("revoked_at"),
    )
    op.create_table(
        "files",
        sa.Column("id", sa.Text, primary_key=True),
        sequence(),
        created_at(),
        organization(),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("rows", sa.BigInteger),
        time("expires_at"),
    )
    op.create_table(
        "fine_tuning_jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sequence(),
        created_at(),
        organization(),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("desired", sa.Text, nullable=False, server_default="run"),
        sa.Column("spec", JSONB, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("training_file", sa.Text, nullable=False),
        sa.Column("validation_file", sa.Text, nullable=False),
        sa.Column("metadata", JSONB),
        sa.Column("attempt", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("strikes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("worker", sa.Text),
        time("lease_expires_at"),
        time("eligible_at", nullable=False, server_default=sa.func.now()),
        sa.Column("event_count", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("step", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("total_steps", sa.BigInteger, nullable=False),
        sa.Column("trained_tokens", sa.BigInteger),
        time("started_at"),
        time("finished_at"),
        time("estimated_finish"),
        sa.Column("fine_tuned_model", sa.Text),
        sa.Column("result_files", JSONB, nullable=False, server_default="[]"),
        sa.Column("error", JSONB),
        sa.CheckConstraint(
            "status IN ('validating_files','queued','running','paused','succeeded','failed','cancelled')", name="status"
        ),
        sa.CheckConstraint("desired IN ('run','pause','cancel')", name="desired"),
        sa.CheckConstraint("(status = 'running') = (lease_expires_at IS NOT NULL)", name="running_has_lease"),
    )
    op.create_index("jobs_queued", "fine_tuning_jobs", ["sequence"], postgresql_where=sa.text("status = 'queued'"))
    op.create_index(
        "jobs_running", "fine_tuning_jobs", ["organization_id"], postgresql_where=sa.text("status = 'running'")
    )
    op.create_index("jobs_of_organization", "fine_tuning_jobs", ["organization_id", "sequence"])
    op.create_index("files_of_organization", "files", ["organization_id", "sequence"])
    op.create_table(
        "fine_tuning_events",
        job(),
        sa.Column("seq", sa.BigInteger, nullable=False),
        organization(),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.clock_timestamp(), nullable=False),
        sa.Column("level", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", JSONB),
        sa.Column("key", sa.Text),
        sa.PrimaryKeyConstraint("job_id", "seq"),
    )
    op.create_index("events_once", "fine_tuning_events", ["job_id", "key"], unique=True)
    op.create_table(
        "fine_tuning_checkpoints",
        sa.Column("id", sa.Text, primary_key=True),
        sequence(),
        created_at(),
        job(),
        organization(),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("metrics", JSONB, nullable=False),
    )
    op.create_index("checkpoints_once", "fine_tuning_checkpoints", ["job_id", "step"], unique=True)
    op.create_table(
        "tuned_models",
        sa.Column("id", sa.Text, primary_key=True),
        sequence(),
        created_at(),
        organization(),
        sa.Column("job_id", sa.Text, sa.ForeignKey("fine_tuning_jobs.id"), nullable=False, unique=True),
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
    )


def create_roles() -> None:
    for role, grants in GRANTS.items():
        # Roles belong to the whole cluster, so another database's migration may have made them, even just now.
        op.execute(
            f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN; "
            "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
        op.execute(f"GRANT {role} TO CURRENT_USER")
        op.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
        for table, privileges in grants.items():
            op.execute(f"GRANT {privileges} ON {table} TO {role}")


def secure_rows() -> None:
    own = "organization_id = current_setting('app.organization_id', true)"
    policies = {
        "organizations": {
            "troll_api": "id = current_setting('app.organization_id', true)",
            "troll_worker": "true",
            "troll_operator": "true",
        },
        # Before a caller is known, the hash of the key it presented shows that one key.
        "api_keys": {"troll_api": f"{own} OR hash = current_setting('app.key_hash', true)", "troll_operator": "true"},
    }
    for table in TENANT_TABLES:
        policies.setdefault(table, {"troll_api": own, "troll_worker": "true"})
    for table, by_role in policies.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        for role, condition in by_role.items():
            op.execute(
                f"CREATE POLICY {table}_{role} ON {table} TO {role} USING ({condition}) WITH CHECK ({condition})"
            )
