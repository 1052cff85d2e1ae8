"""What a job will cost, by what jobs like it did cost."""

import statistics
from collections.abc import Sequence

from sqlalchemy.orm import Session

from service.jobs import repository
from service.jobs.models import Job
from service.jobs.spec import JobSpec
from service.jobs.stored import UnreadableError

RECENT = 50
"""Jobs of one base model that are looked at, the newest ones."""
COUNTED = 10
"""Of these, jobs alike that count."""


def gpu_seconds(session: Session, spec: JobSpec) -> float | None:
    """The caller's own jobs tell, that succeeded lately, from the same base model and trained alike: their median cost
    of one sample, times the samples of ``spec``. None where there is no such job.

    A sample is an answer that is learned from or evaluated, or a conversation.
    """
    costs = _costs(repository.succeeded_from(session, spec.model, RECENT), spec)[:COUNTED]
    return statistics.median(costs) * spec.method.samples if costs else None


def _costs(done: Sequence[Job], spec: JobSpec) -> list[float]:
    """GPU-seconds a sample of each job that was trained like ``spec``."""
    costs: list[float] = []
    for job in done:
        try:
            theirs = job.as_spec()
        except UnreadableError:
            continue
        if _kind(theirs) == _kind(spec):
            # One that stopped early has not taken all of its samples.
            taken = theirs.method.samples * job.step / theirs.method.total_steps
            costs += [job.gpu_seconds / taken] if taken else []
    return costs


def _kind(spec: JobSpec) -> tuple[object, ...]:
    return spec.method.type, *spec.method.cost_factors
