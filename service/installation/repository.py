"""Queries on the row of the installation."""

from sqlalchemy import exists, select
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
    return bool(session.scalar(select(exists().select_from(File)))) or bool(
        session.scalar(select(exists().select_from(Job)))
    )
