"""A training worker says what it has, that it is there, and hears whether it is to take no further job."""

import importlib.util
import logging
import threading
from collections.abc import Callable

from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy.exc import InterfaceError, OperationalError

from service.contracts.engines import ENGINES
from service.core.db import transaction
from service.jobs.turns import Capacity
from service.scheduling import repository as scheduling
from service.settings import settings
from workers.jobs import gpus

OUTAGES = (OperationalError, InterfaceError, BrokerError)
"""What the absence of PostgreSQL, or of Redis, looks like."""

log = logging.getLogger(__name__)


def engines() -> list[str]:
    """The rollout engines that are installed here."""
    return [name for name, engine in ENGINES.items() if importlib.util.find_spec(engine.module)]


def capacity() -> Capacity:
    """What this worker has for a job."""
    return Capacity(engines(), gpus.memory(settings().processes_per_job) or None)


class Registration:
    """Keeps the worker ``name`` registered, in a thread of its own.

    ``listen(taking)`` is called when whether it takes jobs has changed.
    """

    def __init__(self, name: str, listen: Callable[[bool], object]) -> None:
        self._name, self._listen = name, listen
        self._taking = True
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="registration")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()

    def _keep(self) -> None:
        known = False
        while not self._ended.is_set():
            try:
                known = self.beat(known=known)
            except OUTAGES as error:
                log.warning("the worker could not say that it is there, and tries again: %s", error)
            self._ended.wait(settings().heartbeat_seconds)

    def beat(self, *, known: bool) -> bool:
        """Say that the worker is there, and with what unless that is ``known``. Whether it is known now."""
        with transaction("troll_worker") as session:
            if not known:
                processes = settings().processes_per_job
                memory = gpus.memory(processes)
                scheduling.register(session, self._name, gpus=processes, engines=engines(), gpu_bytes=memory)
            seen = scheduling.see(session, self._name)
        if seen is None:
            return False
        taking = seen.draining_since is None
        if taking != self._taking:
            log.info("%s takes %s", self._name, "jobs again" if taking else "no further job")
            self._listen(taking)
            self._taking = taking
        return True
