"""Every line that the API logs says which request it belongs to, uvicorn's access log included."""

import logging
from contextvars import ContextVar

FORMAT = "%(asctime)s %(levelname)s [%(request_id)s] %(name)s: %(message)s"

request_id: ContextVar[str] = ContextVar("request_id", default="-")


class AddRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


def configure() -> None:
    """Give the handlers that uvicorn made the request's id, and our own loggers those handlers if they have none."""
    server, access, root = (logging.getLogger(name) for name in ("uvicorn", "uvicorn.access", None))
    for handler in [*server.handlers, *access.handlers]:
        handler.addFilter(AddRequestId())
        handler.setFormatter(logging.Formatter(FORMAT))
    if server.handlers and not root.handlers:
        root.addHandler(server.handlers[0])
        root.setLevel(logging.INFO)
