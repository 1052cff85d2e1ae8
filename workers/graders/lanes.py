"""A batch of programs on several jails side by side; each thread starts, feeds and ends a jail of its own."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from service.graders.settings import GraderSettings
from workers.graders.jail import Jail, JailError, Outcome, Program

JAILED_BATCH = 16
"""A jail starts anew for every batch; so many runs make up for it."""
MAX_FAILURES = 3
"""Failures in a row after which a lane starts no more jails."""


def run_all(
    programs: Sequence[Program], settings: GraderSettings, preload: Sequence[str] = ()
) -> list[Outcome | JailError]:
    """The outcome of each program, in order. Where the jail failed, the reason stands in its place."""
    outcomes: list[Outcome | JailError] = [JailError("it was not run")] * len(programs)
    waiting = iter(enumerate(programs))
    lock = threading.Lock()
    deadline = time.monotonic() + settings.batch_seconds

    def work() -> None:
        lane = _Lane(settings, preload)
        with lane.open():
            while (next_ := _take(waiting, lock)) is not None:
                index, program = next_
                outcomes[index] = lane.run(program, deadline)

    lanes = min(settings.jail_lanes, len(programs))
    with ThreadPoolExecutor(max(lanes, 1), thread_name_prefix="jail") as pool:
        for future in [pool.submit(work) for _ in range(lanes)]:
            future.result()
    return outcomes


def _take(waiting: Iterator[tuple[int, Program]], lock: threading.Lock) -> tuple[int, Program] | None:
    with lock:
        return next(waiting, None)


class _Lane:
    """Programs one after the other, in a new jail where the last one broke."""

    def __init__(self, settings: GraderSettings, preload: Sequence[str]) -> None:
        self._settings, self._preload = settings, preload
        self._jail: Jail | None = None
        self._failures = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._discard()

    def run(self, program: Program, deadline: float) -> Outcome | JailError:
        if time.monotonic() > deadline:
            return JailError(f"the batch was given up after {self._settings.batch_seconds:g} seconds")
        if self._failures >= MAX_FAILURES:
            return JailError("the jail failed too often in a row")
        try:
            if self._jail is None:
                self._jail = Jail(self._settings, self._preload)
            outcome = self._jail.run(program)
        except JailError as error:
            self._failures += 1
            self._discard()
            return error
        self._failures = 0
        return outcome

    def _discard(self) -> None:
        if self._jail is not None:
            self._jail.close()
            self._jail = None
