"""The id that a database and its data folder have in common."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.access import allow

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "installation",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("beats", JSONB, nullable=False, server_default="[]"),
        sa.Column("tied_at", sa.DateTime(timezone=True)),
        sa.Column("careful_until", sa.DateTime(timezone=True)),
    )
    op.execute("INSERT INTO installation (id) VALUES ('inst_' || replace(gen_random_uuid()::text, '-', ''))")
    # The control worker ties folder and database together; the others only look.
    allow(
        "installation",
        own="true",
        troll_api="SELECT",
        troll_worker="SELECT",
        troll_control="SELECT, UPDATE (beats, tied_at, careful_until)",
        troll_operator="SELECT",
    )
    # It removes what attempts left, which is what none of these names.
    allow("fine_tuning_checkpoints", troll_control="SELECT")
    allow("tuned_models", troll_control="SELECT")
