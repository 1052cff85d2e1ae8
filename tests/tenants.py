"""Two organisations, one of them with two projects, and a row of each in every table."""

from dataclasses import dataclass

import psycopg

from service.core.db import EVERY_PROJECT
from service.embedded.servers import Servers


@dataclass(frozen=True)
class Tenant:
    """An owner of rows, whose ids all end in ``-{tag}``."""

    tag: str
    organization_id: str
    project_id: str

    @property
    def whole(self) -> "Tenant":
        return Tenant(self.tag, self.organization_id, EVERY_PROJECT)


FIRST = Tenant("first", "org-acme", "proj_acme")
SECOND = Tenant("second", "org-acme", "proj_second")
FOREIGN = Tenant("foreign", "org-globex", "proj_globex")
ALL = (FIRST, SECOND, FOREIGN)

_ROWS = {
    "files": "(id, organization_id, project_id, filename, purpose, bytes, sha256) "
    "VALUES ('files-{tag}', '{org}', '{project}', 'f', 'fine-tune', 1, '')",
    "uploads": "(id, organization_id, project_id, filename, purpose, bytes, mime_type, expires_at) "
    "VALUES ('uploads-{tag}', '{org}', '{project}', 'f', 'fine-tune', 1, 'm', now())",
    "upload_parts": "(id, organization_id, upload_id, bytes) VALUES ('part-{tag}', '{org}', 'uploads-{tag}', 1)",
    "kept_answers": "(organization_id, project_id, key, fingerprint) VALUES ('{org}', '{project}', 'key-{tag}', '')",
    "fine_tuning_jobs": "(id, organization_id, project_id, status, spec, model, training_file, total_steps) "
    "VALUES ('job-{tag}', '{org}', '{project}', 'queued', '{{}}', 'm', 'f', 1)",
    "fine_tuning_events": "(job_id, seq, organization_id, level, type, message) "
    "VALUES ('job-{tag}', 1, '{org}', 'info', 'message', 'm')",
    "metric_blocks": "(job_id, size, number, organization_id, project_id, first_step, step, last_seq, told_at, tokens, "
    "means, counts) VALUES ('job-{tag}', 8, 0, '{org}', '{project}', 1, 8, 8, now(), 1, '{{}}', '{{}}')",
    "fine_tuning_checkpoints": "(id, job_id, organization_id, project_id, step, attempt, path, model, metrics) "
    "VALUES ('checkpoint-{tag}', 'job-{tag}', '{org}', '{project}', 1, 1, 'p', 'ft:ckpt-step-1-{tag}', '{{}}')",
    "tuned_models": "(id, organization_id, project_id, job_id, base_model, path) "
    "VALUES ('ft:model-{tag}', '{org}', '{project}', 'job-{tag}', 'm', 'p')",
    "examinations": "(id, organization_id, project_id, question) VALUES ('job-{tag}', '{org}', '{project}', '{{}}')",
    "exports": "(id, organization_id, project_id, model, source, format, bytes, expires_at) "
    "VALUES ('export-{tag}', '{org}', '{project}', 'ft:model-{tag}', 'p', 'gguf', 1, now() + interval '1 day')",
    "webhook_endpoints": "(id, organization_id, project_id, name, url, event_types, salt) "
    "VALUES ('whe-{tag}', '{org}', '{project}', 'n', 'u', '[]', 's')",
    "webhook_deliveries": "(id, organization_id, endpoint_id, event_type, payload) "
    "VALUES ('evt-{tag}', '{org}', 'whe-{tag}', 't', '{{}}')",
    "service_accounts": "(id, organization_id, project_id, name, role) "
    "VALUES ('svc-{tag}', '{org}', '{project}', 'n', 'member')",
    "users": "(id, organization_id, email, name, role) VALUES ('user-{tag}', '{org}', '{tag}@x.io', 'n', 'reader')",
    "project_users": "(organization_id, project_id, user_id, role) "
    "VALUES ('{org}', '{project}', 'user-{tag}', 'member')",
    "api_keys": "(id, organization_id, project_id, name, hint, hash) "
    "VALUES ('key-{tag}', '{org}', '{project}', 'n', 'h', 'hash-{tag}')",
    "audit_logs": "(id, organization_id, project_id, type, actor, details) "
    "VALUES ('audit-{tag}', '{org}', '{project}', 't', '{{}}', '{{}}')",
    "gpu_usage": "(organization_id, hour, gpu_seconds) VALUES ('{org}', now(), 1) ON CONFLICT DO NOTHING",
    "project_gpu_usage": "(organization_id, project_id, hour, gpu_seconds) VALUES ('{org}', '{project}', now(), 1)",
    "operators": "(organization_id) VALUES ('{org}') ON CONFLICT DO NOTHING",
    "organization_limits": "(organization_id) VALUES ('{org}') ON CONFLICT DO NOTHING",
    "project_token_usage": "(organization_id, project_id, minute, model, requests, input_tokens, output_tokens) "
    "VALUES ('{org}', '{project}', now(), 'm-{tag}', 1, 1, 1)",
    "token_usage": "(organization_id, minute, model, requests, input_tokens, output_tokens) "
    "VALUES ('{org}', now(), 'm', 1, 1, 1) ON CONFLICT DO NOTHING",
}


def populate(servers: Servers) -> None:
    """Write all rows as the owner of the tables, whom nothing holds back. No model is shared."""
    with psycopg.connect(servers.database_owner_url, autocommit=True) as owner:
        owner.execute("INSERT INTO organizations (id, name) VALUES ('org-acme', 'acme'), ('org-globex', 'globex')")
        owner.execute(
            "INSERT INTO projects (id, organization_id, name) VALUES ('proj_second', 'org-acme', 'Second project')"
        )
        for each in ALL:
            for table, row in _ROWS.items():
                statement = row.format(tag=each.tag, org=each.organization_id, project=each.project_id)
                owner.execute(f"INSERT INTO {table} {statement}")


def share(servers: Servers, checkpoint: str, source: Tenant, with_: Tenant) -> None:
    """Let a project use a model of another."""
    with psycopg.connect(servers.database_owner_url, autocommit=True) as owner:
        owner.execute(
            "INSERT INTO checkpoint_permissions (id, organization_id, source_project_id, checkpoint, project_id) "
            "VALUES (%s, %s, %s, %s, %s)",
            [f"cp_{checkpoint}", source.organization_id, source.project_id, checkpoint, with_.project_id],
        )
