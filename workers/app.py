"""The Celery application of every worker."""

import logging
from typing import Any

from celery import Celery, signals
from sqlalchemy.exc import InterfaceError, OperationalError

from service.core import ask, clock, storage
from service.core.broker import CONTROL_QUEUE, RUN_JOB, TRAINING_QUEUE, configure
from service.core.db import Login, WrongLoginError, engine, transaction
from service.installation import service as installation
from service.settings import MissingSettingError, required
from workers.control import examiner, exporter
from workers.jobs import supervisor
from workers.jobs.registration import Registration

LOGIN_OF_QUEUE: dict[str, Login] = {TRAINING_QUEUE: "troll_worker", CONTROL_QUEUE: "troll_control"}

log = logging.getLogger(__name__)

app = configure(Celery("troll", include=["workers.tasks"]))
app.conf.update(
    # A message is acknowledged when it is taken: recovery is the lease's work, not the broker's, whose visibility
    # timeout would deliver an hours-long task again while it runs.
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    worker_hijack_root_logger=True,
    worker_send_task_events=False,
    task_routes={RUN_JOB: {"queue": TRAINING_QUEUE}},
)


@signals.celeryd_after_setup.connect
def _prepare(**_: Any) -> None:
    """End at once, not at the first task, where what the worker's queues need is missing or is not this folder's."""
    storage.restrict_umask()
    try:
        for queue in app.amqp.queues.consume_from:
            if queue in LOGIN_OF_QUEUE:
                engine(LOGIN_OF_QUEUE[queue])
                _belong(LOGIN_OF_QUEUE[queue])
        if CONTROL_QUEUE in app.amqp.queues.consume_from:
            required("webhook_key")
    except (MissingSettingError, WrongLoginError, installation.MismatchError) as error:
        raise SystemExit(str(error)) from error


def _belong(login: Login) -> None:
    """Raises ``installation.MismatchError`` where the data folder is not the database's."""
    try:
        with transaction(login) as session:
            clock.warn_if_off(session)
            if login == "troll_control":
                installation.tie(session)
            else:
                installation.verify(session)
    except (OperationalError, InterfaceError) as error:
        log.warning("the database does not answer yet: %s", error)


@signals.worker_ready.connect
def _warm_up(sender: Any, **_: Any) -> None:
    """A control worker says that it is there, before the first sweep says so again and again.

    Either has what it needs imported before it is asked, a training worker in a child, so that a job is examined and
    starts at once.
    """
    if CONTROL_QUEUE in app.amqp.queues.consume_from:
        ask.report_alive()
        examiner.warm_up()
    if TRAINING_QUEUE in app.amqp.queues.consume_from:
        supervisor.warm_children.warm_up()
        _register(sender.hostname)


def _register(name: str) -> None:
    """Keep the worker registered; while it is drained it takes nothing from the queue, so that others find it there."""

    def listen(taking: bool) -> None:
        change = app.control.add_consumer if taking else app.control.cancel_consumer
        change(TRAINING_QUEUE, destination=[name])

    Registration(name, listen).start()


@signals.task_unknown.connect
def _refuse(message: Any, name: str, **_: Any) -> None:
    """Tell whoever asks something of a newer version that nobody here knows it; Celery's own log names it as well."""
    log.error("a message of another version is refused: '%s' is not known here", name)
    arguments = message.payload[0] if isinstance(message.payload, list | tuple) and message.payload else []
    if isinstance(arguments, list | tuple) and arguments and str(arguments[0]).startswith(ask.PREFIX):
        ask.reply(str(arguments[0]), ask.UNKNOWN)


@signals.worker_shutting_down.connect
def _drain(**_: Any) -> None:
    supervisor.shutting_down.set()


@signals.worker_shutdown.connect
def _clear(**_: Any) -> None:
    supervisor.warm_children.close()
    exporter.close()
