"""Who may do what with a table. A migration that makes a table calls ``allow`` for it once.

The logins that may be named are those of ``service.core.db``. To change what one may do, call ``allow`` again with all
of it: what it may no longer do is taken away.
"""

from alembic import op

OWN = "organization_id = current_setting('app.organization_id', true)"
"""Rows of the organisation on whose behalf a transaction of the API acts: for what is counted for all of it."""

SETTING = "coalesce(current_setting('app.project_id', true), '')"
EVERY = f"{OWN} AND {SETTING} = '*'"
"""Rows of an organisation for a transaction that acts for all of it, as administrators' do."""
PROJECT = (
    f"{OWN} AND ({SETTING} = '*' OR project_id = CASE {SETTING} WHEN '' THEN "
    f"default_project(current_setting('app.organization_id', true)) ELSE {SETTING} END)"
)
"""Rows of the project on whose behalf a transaction acts: the default one for a release that knows of none."""


def allow(table: str, *, own: str = OWN, **privileges: str) -> None:
    """Turn on row-level security for ``table`` and give each login its privileges, such as ``"SELECT, INSERT"``.

    ``troll_api`` sees the rows for which ``own`` holds, the others all rows.
    """
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    for login, allowed in privileges.items():
        condition = own if login == "troll_api" else "true"
        op.execute(f"REVOKE ALL ON {table} FROM {login}")
        op.execute(f"GRANT {allowed} ON {table} TO {login}")
        op.execute(f"DROP POLICY IF EXISTS {table}_{login} ON {table}")
        op.execute(f"CREATE POLICY {table}_{login} ON {table} TO {login} USING ({condition}) WITH CHECK ({condition})")


def forbid(table: str, *logins: str) -> None:
    """Take from ``logins`` all they could do with ``table``."""
    for login in logins:
        op.execute(f"REVOKE ALL ON {table} FROM {login}")
        op.execute(f"DROP POLICY IF EXISTS {table}_{login} ON {table}")
