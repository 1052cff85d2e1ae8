"""Whose turn it is follows from the GPU time that organisations have had, and workers are known by name."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.access import allow

revision = "0010"
down_revision = "0009"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("organizations", sa.Column("weight", sa.Double, nullable=False, server_default="1"))
    op.create_check_constraint("organizations_weight", "organizations", "weight > 0")
    op.add_column("organizations", sa.Column("gpu_hours_a_month", sa.Double))
    op.create_check_constraint("organizations_budget", "organizations", "gpu_hours_a_month >= 0")
    op.create_table(
        "gpu_usage",
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), primary_key=True),
        sa.Column("hour", TIME, primary_key=True),
        sa.Column("gpu_seconds", sa.Double, nullable=False),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("started_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("seen_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("draining_since", TIME),
        sa.Column("gpus", sa.BigInteger, nullable=False),
        sa.Column("engines", JSONB, nullable=False),
    )
    for column in (
        sa.Column("priority", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("gpus", sa.BigInteger, nullable=False, server_default="1"),
        sa.Column("counted_at", TIME),
        sa.Column("gpu_seconds", sa.Double, nullable=False, server_default="0"),
        sa.Column("queue_position", sa.BigInteger),
        sa.Column("estimated_start", TIME),
        sa.Column("waits_for", sa.Text),
    ):
        op.add_column("fine_tuning_jobs", column)
    # The training worker counts what it uses; the control worker says where in the queue a job is.
    op.execute("GRANT UPDATE (gpus, counted_at, gpu_seconds) ON fine_tuning_jobs TO troll_worker")
    op.execute("GRANT UPDATE (queue_position, estimated_start, waits_for) ON fine_tuning_jobs TO troll_control")
    allow("gpu_usage", troll_api="SELECT", troll_worker="SELECT, INSERT, UPDATE (gpu_seconds)", troll_control="SELECT")
    allow("gpu_usage", troll_operator="SELECT")
    allow(
        "workers",
        own="false",
        troll_worker="SELECT, INSERT, UPDATE (started_at, seen_at, gpus, engines)",
        troll_control="SELECT, DELETE",
        troll_operator="SELECT, UPDATE (draining_since)",
    )
    allow("fine_tuning_jobs", troll_operator="SELECT (id, organization_id, status, worker, lease_expires_at)")
    allow("organizations", troll_control="SELECT", troll_operator="SELECT, INSERT, UPDATE (weight, gpu_hours_a_month)")
