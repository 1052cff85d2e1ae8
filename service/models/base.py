"""The operator's list of base models: the folders beneath ``settings().models_dir`` that are safe to load.

A folder is on the list when it holds a ``config.json`` and safetensors weights and nothing that could run code: no
Python files, no pickles, no ``auto_map``. One that looks like a model and is not on the list is broken: the API's log
names it once, ``troll models broken`` lists it, and users do not see it.

Files are read again only when they or their folder changed, so that a list of a thousand models costs a look at each
folder and no more.
"""

import errno
import json
import logging
import os
import stat
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from service.settings import settings

FORBIDDEN_SUFFIXES = {".py", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
DEPTH = 3
CONFIG = "config.json"
MAX_CONFIG_BYTES = 4 * 1024**2
MAX_ID_LENGTH = 255
"""Of a model's id in a request."""
SETTLED_NS = 2_000_000_000
"""A file or folder that changed so lately may change again with the same time stamp."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseModel:
    id: str
    path: Path
    created_at: datetime


@dataclass(frozen=True)
class Broken:
    """A folder that looks like a model and cannot be offered. ``id`` can be printed, whatever its name is."""

    id: str
    reason: str


def available() -> list[BaseModel]:
    """Every base model on offer, by id."""
    offered, broken = survey(settings().models_dir)
    _tell(broken)
    return offered


def find(id: str) -> BaseModel | None:
    """The base model ``id``, found by its path alone: every chat asks, and there may be many models."""
    parts, root = id.split("/"), settings().models_dir
    if len(parts) > DEPTH or any(part in ("", ".", "..") for part in parts):
        return None
    if len(id) > MAX_ID_LENGTH or _printable(id) != id:
        return None
    look = _look(str(root.joinpath(*parts)))
    return _base_model(root, look) if look is not None and look.is_model and look.reason is None else None


def survey(root: Path) -> tuple[list[BaseModel], list[Broken]]:
    """What ``root`` offers, and which folders in it are broken, by id. A folder that vanishes meanwhile is neither."""
    offered: list[BaseModel] = []
    broken: list[Broken] = []
    level = [str(root)]
    for depth in range(DEPTH + 1):
        looks = [look for path in level if (look := _look(path)) is not None]
        for look in looks if depth > 0 else ():
            if not look.is_model and look.reason is None:
                continue
            reason = look.reason or _bad_name(look.path, root)
            if reason is None:
                offered.append(_base_model(root, look))
            else:
                broken.append(Broken(_printable(os.path.relpath(look.path, root)), reason))
        if depth == 0 and looks and looks[0].reason is not None and not looks[0].is_model:
            broken.append(Broken(_printable(str(root)), looks[0].reason))
        level = [f"{look.path}/{name}" for look in looks for name in look.folders]
    return sorted(offered, key=lambda model: model.id), sorted(broken, key=lambda each: each.id)


@dataclass(frozen=True)
class _Look:
    """What one folder is. ``reason`` says why it is not offered, if it is a model's or cannot be read."""

    path: str
    folders: tuple[str, ...] = ()
    is_model: bool = False
    reason: str | None = None
    changed: float = 0.0
    """When ``config.json`` was written, in seconds since the epoch."""


Stamp = tuple[int, int, int]

_looks: dict[str, tuple[Stamp, Stamp | None, _Look]] = {}
"""By path: of which folder and which ``config.json`` it holds, and what was seen."""
_told: dict[str, str] = {}
_lock = threading.Lock()


def _look(path: str) -> _Look | None:
    """What the folder at ``path`` is; None when there is none."""
    try:
        folder = Path(path).stat()
        if not stat.S_ISDIR(folder.st_mode):
            return None
    except OSError as error:
        return None if _is_absence(error) else _Look(path, reason=_why(error))
    try:
        config = _stamp(Path(path, CONFIG).stat())
    except OSError:
        config = None
    stamps = _stamp(folder), config
    seen = _looks.get(path)
    if seen is not None and seen[:2] == stamps:
        return seen[2]
    look = _read(path)
    newest = max(each[0] for each in stamps if each is not None)
    if time.time_ns() - newest > SETTLED_NS and look is not None:
        _looks[path] = (*stamps, look)
    else:
        _looks.pop(path, None)
    return look


def _read(path: str) -> _Look | None:
    try:
        with os.scandir(path) as found:
            entries = list(found)
        folders = tuple(sorted(entry.name for entry in entries if _is(entry, folder=True)))
        files = [entry.name for entry in entries if _is(entry, folder=False)]
    except OSError as error:
        return None if _is_absence(error) else _Look(path, reason=_why(error))
    if not any(entry.name == CONFIG for entry in entries):
        return _Look(path, folders)
    try:
        reason, changed = _refusal(path, files)
    except OSError as error:
        return _Look(path, folders, is_model=True, reason=f"its {CONFIG} cannot be read: {error.strerror}")
    return _Look(path, folders, is_model=True, reason=reason, changed=changed)


def _refusal(path: str, files: list[str]) -> tuple[str | None, float]:
    """Why a folder with these files and a ``config.json`` is not offered, and when that was written."""
    # Opening a pipe would wait for a writer.
    descriptor = os.open(f"{path}/{CONFIG}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            return f"its {CONFIG} is no file", state.st_mtime
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    finally:
        os.close(descriptor)
    unsafe = sorted(name for name in files if Path(name).suffix in FORBIDDEN_SUFFIXES)
    if unsafe:
        return f"it holds files that could run code: {', '.join(map(_printable, unsafe))}", state.st_mtime
    if not any(name.endswith(".safetensors") for name in files):
        return "it holds no safetensors weights", state.st_mtime
    return _refusal_of_config(content), state.st_mtime


def _refusal_of_config(content: bytes) -> str | None:
    if len(content) > MAX_CONFIG_BYTES:
        return f"its {CONFIG} has more than {MAX_CONFIG_BYTES} bytes"
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        return f"its {CONFIG} is not valid JSON"
    if not isinstance(config, dict):
        return f"its {CONFIG} is not a JSON object"
    return f"its {CONFIG} asks for custom code (auto_map)" if "auto_map" in config else None


def _bad_name(path: str, root: Path) -> str | None:
    """Why no request could name the folder at ``path``."""
    id = os.path.relpath(path, root)
    if _printable(id) != id:
        return "its name holds bytes that are no UTF-8, or characters that cannot be printed"
    return f"its name has more than {MAX_ID_LENGTH} characters" if len(id) > MAX_ID_LENGTH else None


def _tell(broken: list[Broken]) -> None:
    """Log what has become broken, once, and what no longer is."""
    with _lock:
        now = {each.id: each.reason for each in broken}
        news = [(id, reason) for id, reason in now.items() if _told.get(id) != reason]
        mended = [id for id in _told if id not in now]
        _told.clear()
        _told.update(now)
    for id, reason in news:
        log.warning("the model folder '%s' is broken and not offered: %s", id, reason)
    for id in mended:
        log.info("the model folder '%s' is no longer broken", id)


def _base_model(root: Path, look: _Look) -> BaseModel:
    try:
        created_at = datetime.fromtimestamp(look.changed, UTC)
    except (ValueError, OverflowError):
        # A file may say that it was written in any year.
        created_at = datetime.fromtimestamp(0, UTC)
    return BaseModel(os.path.relpath(look.path, root), Path(look.path), created_at)


def _is(entry: "os.DirEntry[str]", *, folder: bool) -> bool:
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:
        # A link in a circle, or to where we may not look.
        return False


def _is_absence(error: OSError) -> bool:
    return isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ENAMETOOLONG


def _why(error: OSError) -> str:
    return f"it cannot be read: {error.strerror}"


def _stamp(state: os.stat_result) -> Stamp:
    return state.st_mtime_ns, state.st_size, state.st_ino


def _printable(text: str) -> str:
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
