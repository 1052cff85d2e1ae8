"""Jobs are examined beside the request that creates them; requests are held by a row; claims remember when."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.access import allow

revision = "0007"
down_revision = "0006"

CONTROL = "SELECT, UPDATE (strikes, claimed_at, lease_expires_at, answer), DELETE"


def upgrade() -> None:
    op.create_table(
        "examinations",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, sa.Identity(always=True), nullable=False, unique=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("question", JSONB, nullable=False),
        sa.Column("strikes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("claimed_at", sa.DateTime(timezone=True)),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
        sa.Column("answer", JSONB),
    )
    op.create_index("examinations_open", "examinations", ["sequence"], postgresql_where=sa.text("answer IS NULL"))
    op.create_index("examinations_claimed", "examinations", ["organization_id", "claimed_at"])
    op.alter_column("kept_answers", "answer", existing_type=JSONB, nullable=True)
    op.add_column("kept_answers", sa.Column("holder", sa.Text))
    op.add_column("kept_answers", sa.Column("held_until", sa.DateTime(timezone=True)))
    op.add_column("fine_tuning_jobs", sa.Column("claimed_at", sa.DateTime(timezone=True)))
    op.create_index(
        "jobs_claimed",
        "fine_tuning_jobs",
        ["organization_id", "claimed_at"],
        postgresql_where=sa.text("claimed_at IS NOT NULL"),
    )
    # Whoever locks a row has to be allowed to update some of it.
    allow("examinations", troll_api="SELECT, INSERT, UPDATE (answer)", troll_control=CONTROL)
    allow("kept_answers", troll_api="SELECT, INSERT, UPDATE, DELETE")
    op.execute("GRANT UPDATE (claimed_at) ON fine_tuning_jobs TO troll_worker")
