"""Names of what jobs make."""

import re

from sqlalchemy.orm import Session

from service.accounts import repository as accounts
from service.jobs.models import Job


def tuned_model(session: Session, job: Job) -> str:
    """``ft:{base}:{organization}:{suffix}:{8 characters of the job's id}``, the same whenever it is asked for."""
    organization = accounts.organization(session, job.organization_id)
    assert organization is not None, "a foreign key holds this"
    # Continuing from a tuned model keeps the name of the base it came from.
    base = job.model.split(":")[1] if job.model.startswith("ft:") else job.model
    suffix = job.as_spec().suffix or ""
    return f"ft:{base}:{slug(organization.name)}:{suffix}:{job.id.removeprefix('ftjob-')[:8]}"


def checkpoint_model(model: str, step: int) -> str:
    return f"{model}:ckpt-step-{step}"


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "organization"
