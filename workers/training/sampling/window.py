"""Sampling while the trainer trains, in another thread."""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import cache

import torch


class Window:
    """Work of the engine that was begun in ``thread``, on a stream of its own where ``device`` is a GPU."""

    def __init__(self, thread: Executor, work: Callable[[], None], device: torch.device) -> None:
        self._seconds = self._waited = 0.0
        # Whatever the engine's weights come from was queued on this thread's stream, and has to be there first.
        pushed = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

        def run() -> None:
            start = time.perf_counter()
            if pushed is None:
                work()
            else:
                with torch.cuda.device(device), torch.cuda.stream(_stream(device)):
                    torch.cuda.current_stream().wait_event(pushed)
                    work()
                    torch.cuda.current_stream().synchronize()
            self._seconds = time.perf_counter() - start

        self._ended = thread.submit(run)

    def wait(self) -> None:
        """Wait until the engine is free. Raises what ended the work."""
        start = time.perf_counter()
        self._ended.result()
        self._waited = time.perf_counter() - start

    @property
    def hidden(self) -> float:
        """How many seconds of the work nobody waited for."""
        return max(0.0, self._seconds - self._waited)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all steps: memory that torch keeps for a stream serves no other."""
    return torch.cuda.Stream(device)
