"""Where a step's time goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """``with clock("sampling"): ...`` adds to ``seconds["sampling"]``; ``phase`` is what the run was at last."""

    def __init__(self) -> None:
        self.phase = "loading"
        self.seconds: dict[str, float] = defaultdict(float)
        self._lap = time.perf_counter()
        self._depth = 0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        outer = self.phase if self._depth else phase
        self.phase, start = phase, time.perf_counter()
        self._depth += 1
        try:
            yield
            # Not reached by what fails, which leaves behind the phase that it failed in.
            self.phase = outer
        finally:
            self._depth -= 1
            self.seconds[phase] += time.perf_counter() - start

    def lap(self) -> dict[str, float]:
        """The seconds since the last lap by phase, all of them together as ``full_iteration``; starts a new lap."""
        now = time.perf_counter()
        seconds = dict(self.seconds) | {"full_iteration": now - self._lap}
        self.seconds.clear()
        self._lap = now
        return seconds
