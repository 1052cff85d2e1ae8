"""What a job needs of a worker is a column, and an index finds the first job of each need."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0010"


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
    op.create_index("gpu_usage_hours", "gpu_usage", ["hour"])
