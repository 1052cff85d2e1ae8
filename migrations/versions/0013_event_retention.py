"""Events of jobs that ended long ago can be removed."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("fine_tuning_jobs", sa.Column("events_removed_at", sa.DateTime(timezone=True)))
    op.create_index(
        "jobs_with_events",
        "fine_tuning_jobs",
        ["finished_at"],
        postgresql_where=sa.text("finished_at IS NOT NULL AND events_removed_at IS NULL"),
    )
    op.execute("GRANT UPDATE (events_removed_at) ON fine_tuning_jobs TO troll_control")
    op.execute("GRANT DELETE ON fine_tuning_events TO troll_control")
    # Whatever control is made to ask for, what a job has told stays while it may be looked at for a reason.
    op.execute(
        "CREATE POLICY only_of_ended_jobs ON fine_tuning_events AS RESTRICTIVE FOR DELETE TO troll_control "
        "USING (EXISTS (SELECT FROM fine_tuning_jobs WHERE id = job_id AND finished_at < now() - interval '23 hours'))"
    )
