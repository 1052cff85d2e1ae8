"""People who sign in with an OIDC provider, sessions of their browsers, tokens by project, and keys that change."""

import sqlalchemy as sa
from alembic import op

from migrations.access import PROJECT, allow

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    let_people_sign_in()
    count_tokens_by_project()
    op.execute("GRANT UPDATE (name, scopes) ON api_keys TO troll_api, troll_operator")


def let_people_sign_in() -> None:
    op.add_column("users", sa.Column("identity", sa.Text))
    op.create_index(
        "users_of_provider",
        "users",
        ["organization_id", "identity"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.execute("GRANT UPDATE (identity) ON users TO troll_api")
    op.add_column("api_keys", sa.Column("is_session", sa.Boolean, nullable=False, server_default="false"))
    # Whoever signs in has no key yet that says which organisation is theirs: the provider or the operator names it.
    op.execute("""
        CREATE POLICY organizations_signing_in ON organizations FOR SELECT TO troll_api
        USING (name = current_setting('app.signing_in_to', true) AND deleted_at IS NULL)
    """)


def count_tokens_by_project() -> None:
    """The table of organisations stays: the release before adds to it, and limits are theirs."""
    numbers = ("requests", "input_tokens", "output_tokens")
    op.create_table(
        "project_token_usage",
        sa.Column("organization_id", sa.Text, sa.ForeignKey("organizations.id"), primary_key=True),
        sa.Column("project_id", sa.Text, sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("minute", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in numbers),
    )
    allow("project_token_usage", own=PROJECT, troll_api=f"SELECT, INSERT, UPDATE ({', '.join(numbers)})")
    read = ("token_usage", "tuned_models", "fine_tuning_checkpoints", "project_token_usage")
    for table in read:
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    # What was used before is counted for the project that made the model, else for the default one.
    op.execute("""
        INSERT INTO project_token_usage
        SELECT used.organization_id, coalesce(
            (SELECT project_id FROM tuned_models made
             WHERE made.id = used.model AND made.organization_id = used.organization_id),
            (SELECT project_id FROM fine_tuning_checkpoints made
             WHERE made.model = used.model AND made.organization_id = used.organization_id LIMIT 1),
            default_project(used.organization_id)
        ), minute, model, requests, input_tokens, output_tokens FROM token_usage used
    """)
    for table in read:
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
