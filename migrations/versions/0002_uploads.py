"""Uploads in parts, kept answers of requests, deleting models."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"

OWN = "organization_id = current_setting('app.organization_id', true)"


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, sa.Identity(always=True), nullable=False, unique=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("mime_type", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="pending"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("file_id", sa.Text),
        sa.Column("file_lifetime_seconds", sa.BigInteger),
        sa.CheckConstraint("status IN ('pending','completed','cancelled')", name="status"),
    )
    op.create_index("uploads_pending", "uploads", ["organization_id"], postgresql_where=sa.text("status = 'pending'"))
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, sa.Identity(always=True), nullable=False, unique=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("upload_id", sa.Text, sa.ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False),
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("parts_of_upload", "upload_parts", ["upload_id"])
    op.create_table(
        "kept_answers",
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("answer", JSONB, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    )
    secure("uploads", api="SELECT, INSERT, UPDATE", worker="SELECT, DELETE")
    secure("upload_parts", api="SELECT, INSERT", worker="SELECT, DELETE")
    secure("kept_answers", api="SELECT, INSERT, UPDATE", worker="SELECT, DELETE")
    op.execute("GRANT DELETE ON tuned_models, fine_tuning_checkpoints TO troll_api")


def secure(table: str, *, api: str, worker: str) -> None:
    op.execute(f"GRANT {api} ON {table} TO troll_api")
    op.execute(f"GRANT {worker} ON {table} TO troll_worker")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY {table}_troll_api ON {table} TO troll_api USING ({OWN}) WITH CHECK ({OWN})")
    op.execute(f"CREATE POLICY {table}_troll_worker ON {table} TO troll_worker USING (true) WITH CHECK (true)")
