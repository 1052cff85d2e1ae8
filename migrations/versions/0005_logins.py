"""Each process has a login of its own, which may become no other, and training and control have just what they need."""

from alembic import op

from migrations.access import allow, forbid

revision = "0005"
down_revision = "0004"

LOGINS = ("troll_api", "troll_worker", "troll_control", "troll_operator")

ENDING = (
    "status, worker, lease_expires_at, desired, strikes, eligible_at, finished_at, estimated_finish, error, event_count"
)
"""Columns of a job that change when an attempt ends."""
PROGRESS = "attempt, started_at, step, total_steps, trained_tokens, fine_tuned_model, result_files"


def upgrade() -> None:
    create_logins()
    part_logins()
    close_database()
    # Training workers claim jobs, record what attempts do, and make their results.
    allow("organizations", troll_worker="SELECT")
    allow(
        "fine_tuning_jobs",
        troll_worker=f"SELECT, UPDATE ({ENDING}, {PROGRESS})",
        troll_control=f"SELECT, UPDATE ({ENDING})",
    )
    allow(
        "fine_tuning_events",
        troll_worker="SELECT, INSERT",
        troll_control="SELECT (job_id, seq, key, created_at), INSERT",
    )
    allow("fine_tuning_checkpoints", troll_worker="SELECT, INSERT, UPDATE (attempt, path, metrics, created_at), DELETE")
    allow("tuned_models", troll_worker="SELECT, INSERT")
    # The control worker ends attempts whose worker died, delivers webhooks, and prunes what is over.
    allow(
        "files",
        troll_worker="SELECT (id, sequence, created_at), INSERT",
        troll_control="SELECT (id, expires_at), DELETE",
    )
    allow("uploads", troll_control="SELECT (id, status, expires_at), DELETE")
    allow("kept_answers", troll_control="SELECT (organization_id, key, created_at), DELETE")
    allow(
        "webhook_endpoints",
        troll_worker="SELECT (id, sequence, organization_id, event_types)",
        troll_control="SELECT",
    )
    allow(
        "webhook_deliveries",
        troll_worker="SELECT (id, sequence, created_at, attempts, next_attempt_at), INSERT",
        troll_control=(
            "SELECT, INSERT, UPDATE (attempts, next_attempt_at, delivered_at, given_up_at, last_result), DELETE"
        ),
    )
    for table in ("uploads", "upload_parts", "kept_answers"):
        forbid(table, "troll_worker")
    # Operators make and revoke keys; nobody changes one.
    allow("api_keys", troll_operator="SELECT, INSERT, UPDATE (revoked_at)")


def create_logins() -> None:
    """Make what is missing. That they may log in, and how, is the deployment's to say."""
    for login in LOGINS:
        # Roles belong to the whole cluster, so another database's migration may have made them, even just now.
        op.execute(
            f"DO $$ BEGIN CREATE ROLE {login} NOLOGIN; "
            "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
        op.execute(f"GRANT USAGE ON SCHEMA public TO {login}")


def part_logins() -> None:
    """Earlier versions had one login that was a member of all these. Nobody but the owner stays a member of any."""
    names = ", ".join(f"'{login}'" for login in LOGINS)
    op.execute(
        f"""
        DO $$
        DECLARE held record;
        BEGIN
            FOR held IN
                SELECT given.rolname AS role, member.rolname AS member, grantor.rolname AS grantor
                FROM pg_auth_members
                JOIN pg_roles given ON given.oid = roleid
                JOIN pg_roles member ON member.oid = pg_auth_members.member
                JOIN pg_roles grantor ON grantor.oid = pg_auth_members.grantor
                WHERE given.rolname IN ({names}) AND member.rolname <> current_user
            LOOP
                EXECUTE format('REVOKE %I FROM %I GRANTED BY %I CASCADE', held.role, held.member, held.grantor);
            END LOOP;
        END $$
        """
    )


def close_database() -> None:
    """Nobody but the owner makes anything in this database, for a while or for good."""
    op.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    op.execute("DO $$ BEGIN EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database()); END $$")
