"""How long an answer of a job can be is found out beside its creation, and kept beside what was asked for."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("fine_tuning_jobs", sa.Column("longest_answer", sa.BigInteger))
    op.execute("GRANT UPDATE (longest_answer) ON fine_tuning_jobs TO troll_control")
