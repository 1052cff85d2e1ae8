"""A stack for the time of a benchmark."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.embedded.detached import start_detached, stop_stack
from service.embedded.stack import Options


@contextmanager
def running_stack() -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder of a stack with the demo's model, as a user starts it, and what it says of itself."""
    with tempfile.TemporaryDirectory(prefix="troll-bench-") as name:
        folder = Path(name)
        stack = start_detached(Options(folder, port=0, demo_model=True))
        try:
            yield folder, stack
        finally:
            stop_stack(folder)
