"""``python -m workers.exporting``: one export, ordered by a line of JSON on standard input.

What it says are lines of JSON: ``{"progress": 0.5}``, and last what came of it, or ``{"failure": …}``.
"""

import contextlib
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.contracts.chat_template import MalformedTemplateError
from service.contracts.disk import is_full
from workers.errors import RunError, is_out_of_memory
from workers.processes import keep_priority

Told = dict[str, Any]


def main() -> None:
    os.umask(0o077)
    keep_priority()
    # Whatever a library prints is no line of ours.
    with os.fdopen(os.dup(1), "w") as lines:
        os.dup2(2, 1)

        def tell(line: Told) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

        with contextlib.suppress(BrokenPipeError):
            tell(carry_out(json.load(sys.stdin), lambda share: tell({"progress": share})))


def carry_out(order: Told, progress: Callable[[float], object]) -> Told:
    """What came of an order; ``failure`` where it could not be carried out."""
    try:
        return _carry_out(order, progress)
    except RunError as error:
        return _failed(error.code, error.message)
    except MalformedTemplateError as error:
        return _failed("invalid_model", f"The model cannot be exported: {error}.")
    except FileNotFoundError as error:
        if Path(order["source"]).is_dir():
            raise
        return _failed("model_not_found", f"The model was deleted before it was exported ({error.filename} is gone).")
    except OSError as error:
        if is_full(error):
            return _failed("disk_full", "The disk of the data folder is full. Ask your operator to make room.")
        raise
    except Exception as error:
        if is_out_of_memory(error):
            return _failed("out_of_memory", "The control worker has too little memory for this export.")
        # It would be the same the next time. The log has it in full.
        traceback.print_exc()
        kind = type(error).__name__
        message = f"The export ended with an error that was not foreseen ({kind}). Ask your operator for the log."
        return _failed("export_failed", message)


def _carry_out(order: Told, progress: Callable[[float], object]) -> Told:
    from service.models import archive
    from workers.exporting import folders, gguf_file, hub, modelfile
    from workers.modeling.export import sync

    source, folder, format = Path(order["source"]), Path(order["folder"]), order["format"]
    if not source.is_dir():
        raise FileNotFoundError(2, "No such folder", str(source))
    notes, type = [], None
    if format == "gguf":
        # What cannot be exported is refused before anything is written.
        checked = gguf_file.Source.of(source)
        folder.mkdir(parents=True)
        type = gguf_file.write(checked, folder / gguf_file.NAME, order["model"], order["type"], progress)
        notes = modelfile.write(folder, gguf_file.NAME, source, checked.vocabulary, checked.chats)
    else:
        folder.mkdir(parents=True)
        notes = folders.write(source, folder, format)
        progress(0.5)
    told: Told = {"type": type, "notes": notes}
    if order["hub"] is not None:
        return told | hub.push(folder, **order["hub"])
    for path in [*folder.rglob("*"), folder]:
        sync(path)
    files = archive.contents(folder)
    digest = hashlib.sha256()
    for chunk in archive.read(files, 0, size := archive.size(files)):
        digest.update(chunk)
    return told | {"bytes": size, "sha256": digest.hexdigest()}


def _failed(code: str, message: str) -> Told:
    return {"failure": {"code": code, "message": message}}


if __name__ == "__main__":
    main()
