"""One question of the database says who calls and lets the transaction see that organisation's rows.

It runs with the rights of whoever asks, so that row-level security holds inside as well.
"""

from alembic import op

revision = "0009"
down_revision = "0008"

SIGNATURE = "identify_caller(presented_hash text, touch_every interval)"


def upgrade() -> None:
    op.execute(f"""
        CREATE FUNCTION {SIGNATURE}
        RETURNS TABLE (key_id text, organization_id text, organization_name text)
        LANGUAGE plpgsql SECURITY INVOKER AS $$
        #variable_conflict use_column
        DECLARE
            found_key text; found_organization text; used_at timestamptz;
        BEGIN
            PERFORM set_config('app.key_hash', presented_hash, true);
            SELECT k.id, k.organization_id, k.last_used_at INTO found_key, found_organization, used_at FROM api_keys k
            WHERE k.hash = presented_hash AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now());
            IF NOT FOUND THEN
                RETURN;
            END IF;
            PERFORM set_config('app.organization_id', found_organization, true);
            IF used_at IS NULL OR used_at < now() - touch_every THEN
                -- Many requests may find this at once; one of them writes it down, and none waits for another.
                PERFORM 1 FROM api_keys k WHERE k.id = found_key FOR NO KEY UPDATE SKIP LOCKED;
                IF FOUND THEN
                    UPDATE api_keys k SET last_used_at = now() WHERE k.id = found_key;
                END IF;
            END IF;
            RETURN QUERY SELECT found_key, o.id, o.name FROM organizations o WHERE o.id = found_organization;
        END $$
    """)
    op.execute(f"REVOKE ALL ON FUNCTION {SIGNATURE} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {SIGNATURE} TO troll_api")
