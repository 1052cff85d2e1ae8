"""Celery's tasks: each only names the function that does the work."""

from celery import Task

from service.core.broker import RUN_JOB
from workers import prune as pruning
from workers import supervisor
from workers import sweep as sweeping
from workers.app import PRUNE, SWEEP, app


@app.task(name=RUN_JOB, bind=True)
def run_job(self: Task, job_id: str) -> None:
    """There is work. Which job is decided by the claim; ``job_id`` is for the log."""
    supervisor.run(worker=self.request.hostname)


@app.task(name=SWEEP)
def sweep() -> None:
    sweeping.sweep()


@app.task(name=PRUNE)
def prune() -> None:
    pruning.prune()
