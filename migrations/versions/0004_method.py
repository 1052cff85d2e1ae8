"""A job's specification holds its method as one part, and a validation file is no longer always there."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.alter_column("fine_tuning_jobs", "validation_file", existing_type=sa.Text, nullable=True)
    # Without this an owner that is no superuser would see, and change, no rows.
    op.execute("ALTER TABLE fine_tuning_jobs NO FORCE ROW LEVEL SECURITY")
    op.execute(
        """
        UPDATE fine_tuning_jobs
        SET spec = spec - 'grader' - 'hyperparameters' || jsonb_build_object(
            'method', jsonb_build_object(
                'type', 'reinforcement',
                'grader', spec -> 'grader',
                'hyperparameters', jsonb_build_object('lora_alpha', 32) || (spec -> 'hyperparameters')
            )
        )
        WHERE NOT spec ? 'method'
        """
    )
    op.execute("ALTER TABLE fine_tuning_jobs FORCE ROW LEVEL SECURITY")
