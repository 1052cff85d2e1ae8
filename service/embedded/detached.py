"""A stack in the background: started, waited for and stopped from another process."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.embedded.folder import Folder
from service.embedded.processes import StartError, end, leftovers
from service.embedded.stack import Options, child_environment

POLL_SECONDS = 0.05


def stop_stack(data_dir: Path) -> bool:
    """Stop the stack of a folder and wait for its end; also what a killed one left. False when there was nothing."""
    folder = Folder(data_dir)
    if (pid := folder.holder()) is not None:
        os.kill(pid, signal.SIGTERM)
        while folder.holder() == pid:
            time.sleep(POLL_SECONDS)
        return True
    left = leftovers(folder.records)
    end(left)
    return bool(left)


def start_detached(options: Options) -> dict[str, Any]:
    """Start a stack in the background and wait until it is ready. Returns what it says of itself.

    Raises ``StartError``.
    """
    folder = Folder(options.data_dir)
    folder.prepare()
    log = folder.logs / "stack.log"
    command = [sys.executable, "-m", "service.embedded", json.dumps(asdict(options), default=str)]
    # Unlike the stack's children, the stack itself has to know the servers that the operator named.
    environment = os.environ | {"PYTHONPATH": child_environment()["PYTHONPATH"]}
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    return _first_words(process, log)


def _first_words(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if not line:
        raise StartError(f"The stack ended with code {process.wait()} before it was ready; see {log}.")
    said: dict[str, Any] = json.loads(line)
    if "error" in said:
        process.wait()
        raise StartError(said["error"])
    return dict(said["ready"])
