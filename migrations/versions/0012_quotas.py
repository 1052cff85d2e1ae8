"""What a job needs of a worker is a column, and an index finds it; limits of organisations, and what they use."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.access import allow

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column(
        "fine_tuning_jobs",
        sa.Column("spec_version", JSONB, sa.Computed("coalesce(spec -> 'version', '1'::jsonb)", persisted=True)),
    )
    op.add_column(
        "fine_tuning_jobs",
        sa.Column(
            "engine",
            sa.Text,
            sa.Computed("coalesce(spec -> 'method' -> 'hyperparameters' ->> 'rollout_engine', '')", persisted=True),
        ),
    )
    # 0 needs nothing, as jobs of earlier releases say.
    op.add_column("fine_tuning_jobs", sa.Column("gpu_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index(
        "jobs_waiting",
        "fine_tuning_jobs",
        ["organization_id", "spec_version", "engine", "gpu_bytes", sa.text("priority DESC"), "sequence"],
        postgresql_where=sa.text("status = 'queued' AND desired = 'run'"),
    )
    op.add_column("fine_tuning_jobs", sa.Column("stored_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("fine_tuning_jobs", sa.Column("estimated_gpu_seconds", sa.Double))
    op.create_index(
        "jobs_succeeded",
        "fine_tuning_jobs",
        ["organization_id", "model", "sequence"],
        postgresql_where=sa.text("status = 'succeeded'"),
    )
    op.execute("GRANT UPDATE (stored_bytes) ON fine_tuning_jobs TO troll_worker")
    op.add_column("workers", sa.Column("gpu_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.execute("GRANT UPDATE (gpu_bytes) ON workers TO troll_worker")
    op.create_index("gpu_usage_hours", "gpu_usage", ["hour"])
    limits = (
        "storage_bytes",
        "upload_bytes",
        "queued_jobs",
        "running_jobs",
        "streams",
        "requests_a_minute",
        "chat_tokens_a_day",
    )
    op.create_table(
        "organization_limits",
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), primary_key=True),
        *(sa.Column(name, sa.BigInteger, sa.CheckConstraint(f"{name} >= 0")) for name in limits),
    )
    allow(
        "organization_limits",
        troll_api="SELECT",
        troll_worker="SELECT",
        troll_control="SELECT",
        troll_operator=f"SELECT, INSERT, UPDATE ({', '.join(limits)})",
    )
    op.create_table(
        "token_usage",
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), primary_key=True),
        sa.Column("minute", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
    )
    allow(
        "token_usage",
        troll_api="SELECT, INSERT, UPDATE (requests, input_tokens, output_tokens)",
        troll_operator="SELECT",
    )
    # An operator sees how much is stored, and nothing of what it is.
    allow("files", troll_operator="SELECT (organization_id, bytes, expires_at)")
    allow("uploads", troll_operator="SELECT (organization_id, bytes, status, expires_at)")
    seen = "id, organization_id, status, worker, lease_expires_at, stored_bytes"
    allow("fine_tuning_jobs", troll_operator=f"SELECT ({seen})")
