"""Organisations that operate the installation, GPU time by project, and means of metrics for long runs' curves."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.access import OWN, PROJECT, SETTING, allow

revision = "0016"
down_revision = "0015"

OPERATES = f"{SETTING} = '*' AND EXISTS (SELECT 1 FROM operators operator WHERE operator.{OWN})"
"""Whether a transaction acts for all of an organisation that operates the installation."""
LOOKS = f"current_setting('app.operating', true) = 'on' AND {OPERATES}"
"""Whether it has said, too, that it looks beyond that organisation."""


def upgrade() -> None:
    let_organizations_operate()
    count_gpu_time_by_project()
    fold_metrics()


def let_organizations_operate() -> None:
    op.create_table(
        "operators",
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), primary_key=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    allow("operators", troll_api="SELECT", troll_operator="SELECT, INSERT, DELETE")
    allow("workers", own=OPERATES, troll_api="SELECT, UPDATE (draining_since)")
    op.execute(f"CREATE POLICY organizations_operating ON organizations FOR SELECT TO troll_api USING ({LOOKS})")
    op.execute(f"""
        CREATE POLICY fine_tuning_jobs_operating ON fine_tuning_jobs FOR SELECT TO troll_api
        USING (finished_at IS NULL AND {LOOKS})
    """)


def count_gpu_time_by_project() -> None:
    """The table of organisations stays: the release before adds to it, and budgets and turns are theirs."""
    op.create_table(
        "project_gpu_usage",
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), primary_key=True),
        sa.Column("project_id", sa.Text, sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("gpu_seconds", sa.Double, nullable=False),
    )
    allow("project_gpu_usage", own=PROJECT, troll_api="SELECT", troll_worker="SELECT, INSERT, UPDATE (gpu_seconds)")
    # Of what was used before nobody knows which project's it was.
    for table in ("gpu_usage", "project_gpu_usage"):
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    op.execute("""
        INSERT INTO project_gpu_usage
        SELECT organization_id, default_project(organization_id), hour, gpu_seconds FROM gpu_usage
    """)
    for table in ("gpu_usage", "project_gpu_usage"):
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")


def fold_metrics() -> None:
    op.create_table(
        "metric_blocks",
        sa.Column("job_id", sa.Text, sa.ForeignKey("fine_tuning_jobs.id"), primary_key=True),
        sa.Column("size", sa.BigInteger, primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True),
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("project_id", sa.Text, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("first_step", sa.Double, nullable=False),
        sa.Column("step", sa.Double, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tokens", sa.Double, nullable=False),
        sa.Column("means", JSONB, nullable=False),
        sa.Column("counts", JSONB, nullable=False),
    )
    allow("metric_blocks", own=PROJECT, troll_api="SELECT", troll_worker="SELECT, INSERT")
    allow("metric_blocks", troll_control="SELECT (job_id), DELETE")
