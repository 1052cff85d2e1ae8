"""Jobs are examined beside the request that creates them; requests are held by a row; claims remember when."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0005"

OWN = "organization_id = current_setting('app.organization_id', true)"


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
    op.execute("GRANT SELECT, INSERT, DELETE ON examinations TO troll_api")
    # A row is locked by whoever may update some of it.
    op.execute("GRANT UPDATE (answer) ON examinations TO troll_api")
    op.execute("GRANT SELECT, UPDATE, DELETE ON examinations TO troll_control")
    op.execute("GRANT DELETE ON kept_answers TO troll_api")
    op.execute("ALTER TABLE examinations ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE examinations FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY examinations_troll_api ON examinations TO troll_api USING ({OWN}) WITH CHECK ({OWN})")
    op.execute("CREATE POLICY examinations_troll_control ON examinations TO troll_control USING (true) WITH CHECK (true)")
