"""Queries on the row of the installation."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.files.models import File
from service.installation.models import Installation
from service.jobs.models import Job


def get(session: Session) -> Installation:
    return session.scalars(select(Installation)).one()


def locked(session: Session) -> Installation:
    return session.scalars(select(Installation).with_for_update()).one()


def has_files_or_jobs(session: Session) -> bool:
    """Of any organisation."""
    queries = select(File.id).limit(1), select(Job.id).limit(1)
    return any(session.scalar(query) is not None for query in queries)
