"""Learning early that this process is asked to stop.

uvicorn tells an application of its end only when all connections are closed, and a live stream is closed by nobody but
us. So the signals that stop uvicorn are overheard.
"""

import signal
import threading
from types import FrameType

stopping = threading.Event()


def overhear() -> None:
    """Note the signals that stop the server; whoever handled them before still does. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def note(number: int, frame: FrameType | None, before: object = before) -> None:
            stopping.set()
            if callable(before):
                before(number, frame)

        signal.signal(number, note)
