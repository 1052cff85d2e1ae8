"""People who sign in through an OIDC provider: who they are there, and the keys that are their browsers' sessions."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0013"


def upgrade() -> None:
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
