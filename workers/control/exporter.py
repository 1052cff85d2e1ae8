"""Exporting models, each in a process of its own, on a thread beside the control worker's other duties.

Which export is next is decided by a claim in PostgreSQL, which is a lease that is renewed while its process lives: what
a lost worker had begun is begun again by another, which writes into a folder of its own. The process is given no
secret but the hub's token that the export needs.
"""

import contextlib
import json
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from service.core import storage
from service.core.db import transaction
from service.exports import repository, seal
from service.exports import service as exports
from service.exports.models import Export
from service.settings import settings
from workers.processes import scrubbed_environment

COMMAND = [sys.executable, "-m", "workers.exporting"]
AT_ONCE = 1
AT_ONCE_EACH = 1
"""Of one organisation, however many workers there are."""
LEASE = timedelta(seconds=60)
RENEW_SECONDS = 5.0
SECONDS = 12 * 3600.0
"""How long one export may take: a hub that never answers does not hold up the others for good."""
CLOSE_SECONDS = 10.0
MAX_ATTEMPTS = 3
LOST = (
    "Exporting the model ended its process several times. The log of the control worker says why; it may have too "
    "little memory."
)

log = logging.getLogger(__name__)
_places = threading.BoundedSemaphore(AT_ONCE)
_running: set["subprocess.Popen[bytes]"] = set()
closing = threading.Event()
"""That this worker ends."""


def start() -> None:
    """Have what waits exported. Returns at once; if somebody is at work already, they will get to it."""
    if _places.acquire(blocking=False):
        threading.Thread(target=_work, name="exporter", daemon=True).start()


def close() -> None:
    """End what is under way, and begin nothing more: another worker begins it again."""
    closing.set()
    for process in list(_running):
        process.kill()
    # Its thread is to say so before it ends with the worker.
    if _places.acquire(timeout=CLOSE_SECONDS):
        _places.release()


def _work() -> None:
    try:
        work()
    except Exception:
        log.exception("exporting stops; the next sweep starts it again")
    finally:
        _places.release()


def work() -> None:
    """Make one export after the other until none waits."""
    while not closing.is_set():
        with transaction("troll_control") as session:
            export = repository.claim(session, lease=LEASE, kept_for=exports.kept_for(), each=AT_ONCE_EACH)
        if export is None:
            return
        make(export)


def make(export: Export) -> None:
    """Make a claimed export and write down what came of it, unless it was removed or taken over meanwhile."""
    begun = storage.export_dir(export.id).with_suffix(storage.PARTIAL)
    partial = begun / f"attempt-{export.attempt}"
    # A worker that was lost could not remove what it had begun, which may be large.
    shutil.rmtree(begun, ignore_errors=True)
    try:
        told = {"failure": _failure("export_failed", LOST)} if export.attempt > MAX_ATTEMPTS else _run(export, partial)
        if told is None:
            if closing.is_set():
                # That was no fault of the export's.
                with transaction("troll_control") as session:
                    repository.release(session, export)
            return
        if "failure" in told:
            log.info("%s failed: %s", export.id, told["failure"]["message"])
            _end(export, None, "failed", error=told["failure"], bytes=0)
        elif export.hub is not None:
            hub = export.hub | {"url": told["url"], "revision": told["revision"]}
            _end(export, None, "succeeded", hub=hub, type=told["type"], notes=told["notes"], bytes=0, progress=1)
        else:
            kept = {name: told[name] for name in ("type", "notes", "bytes", "sha256")}
            _end(export, partial, "succeeded", **kept, progress=1)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            begun.rmdir()


def _end(export: Export, made: Path | None, status: str, **values: Any) -> None:
    """End the export and put what was made where it is downloaded from, if it is still this attempt's."""
    folder = storage.export_dir(export.id)
    with transaction("troll_control") as session:
        # From here on nobody else changes the row, nor its files.
        if repository.finish(session, export, status, exports.kept_for(), **values) and made is not None:
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)


def _run(export: Export, partial: Path) -> dict[str, Any] | None:
    """What the process told of its end; None where it lost the export, or died and is to be tried again."""
    try:
        order = _order(export, partial)
    except seal.UnreadableTokenError:
        message = "The hub's token cannot be read any more: TROLL_WEBHOOK_KEY has changed. Export the model again."
        return {"failure": _failure("export_failed", message)}
    log.info("%s attempt %d: %s of %s", export.id, export.attempt, export.format, export.model)
    process = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=scrubbed_environment() | {"HF_HUB_OFFLINE": "0" if export.hub else "1"},
        start_new_session=True,
    )
    _running.add(process)
    if closing.is_set():
        process.kill()
    try:
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(json.dumps(order).encode())
        return _listen(export, process)
    finally:
        _running.discard(process)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _order(export: Export, partial: Path) -> dict[str, Any]:
    hub = None
    if export.hub is not None and export.sealed_token is not None:
        hub = {
            "url": settings().hub_url,
            "token": seal.unseal(export.id, export.sealed_token),
            "repository": export.hub["repository"],
            "private": export.hub["private"],
        }
    return {
        "model": export.model,
        "source": export.source,
        "folder": str(partial),
        "format": export.format,
        "type": export.type,
        "hub": hub,
    }


def _listen(export: Export, process: "subprocess.Popen[bytes]") -> dict[str, Any] | None:
    """Renew the lease while the process works."""
    progress, rest, give_up_at = 0.0, b"", time.monotonic() + SECONDS
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        renewed_at = time.monotonic()
        while True:
            if selector.select(RENEW_SECONDS):
                received = os.read(descriptor, 1 << 16)
                *lines, rest = (rest + received).split(b"\n")
                for told in map(json.loads, lines):
                    if "progress" not in told:
                        return dict(told)
                    progress = told["progress"]
                if not received:
                    log.warning("%s attempt %d: its process ended (%s)", export.id, export.attempt, process.wait())
                    return None
            now = time.monotonic()
            if now > give_up_at:
                return {"failure": _failure("export_failed", f"The export took longer than {SECONDS / 3600:g} hours.")}
            if now - renewed_at >= RENEW_SECONDS:
                renewed_at = now
                with transaction("troll_control") as session:
                    if not repository.renew(session, export, progress, LEASE):
                        log.info("%s attempt %d: it was removed, or is another's", export.id, export.attempt)
                        return None


def _failure(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
