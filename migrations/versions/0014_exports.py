"""Exports of models: work of the control worker, and what came of it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.access import PROJECT, allow

revision = "0014"
down_revision = "0013"

WRITTEN = (
    "status, type, hub, sealed_token, progress, bytes, sha256, error, notes, attempt, lease_expires_at, finished_at, "
    "expires_at"
)


def upgrade() -> None:
    op.create_table(
        "exports",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, sa.Identity(always=True), nullable=False, unique=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("project_id", sa.Text, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("type", sa.Text),
        sa.Column("hub", JSONB),
        sa.Column("sealed_token", sa.Text),
        sa.Column("status", sa.Text, nullable=False, server_default="queued"),
        sa.Column("progress", sa.Double, nullable=False, server_default="0"),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text),
        sa.Column("error", JSONB),
        sa.Column("notes", JSONB, nullable=False, server_default="[]"),
        sa.Column("attempt", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('queued', 'running', 'succeeded', 'failed')", name="exports_status"),
    )
    op.create_index(
        "exports_open", "exports", ["sequence"], postgresql_where=sa.text("status IN ('queued', 'running')")
    )
    op.create_index("exports_of_model", "exports", ["project_id", "model", "sequence"])
    # A token that was given for one export can be read by whoever makes it, and is changed to nothing by nobody else.
    allow(
        "exports",
        own=PROJECT,
        troll_api="SELECT, INSERT, DELETE",
        troll_control=f"SELECT, UPDATE ({WRITTEN}), DELETE",
        troll_operator="SELECT (organization_id, bytes, expires_at)",
    )
