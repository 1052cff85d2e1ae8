"""The operator's list of base models: the folders beneath ``settings().models_dir`` that are safe to load.

A folder is on the list when it holds a ``config.json`` and safetensors weights and nothing that could run code: no
Python files, no pickles, no ``auto_map``.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from service.settings import settings

FORBIDDEN_SUFFIXES = {".py", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
DEPTH = 3


@dataclass(frozen=True)
class BaseModel:
    id: str
    path: Path
    created_at: datetime


def available() -> list[BaseModel]:
    """Every base model on offer, by id."""
    root = settings().models_dir
    found = [_base_model(root, path.parent) for path in _configs(root) if refusal(path.parent) is None]
    return sorted(found, key=lambda model: model.id)


def find(id: str) -> BaseModel | None:
    """The base model ``id``, found by its path alone: every chat asks, and there may be many models."""
    parts, root = id.split("/"), settings().models_dir
    if len(parts) > DEPTH or any(part in ("", ".", "..") for part in parts):
        return None
    folder = root.joinpath(*parts)
    offered = (folder / "config.json").is_file() and refusal(folder) is None
    return _base_model(root, folder) if offered else None


def refusal(folder: Path) -> str | None:
    """Why ``folder`` is not offered, or None when it is."""
    files = [path for path in folder.iterdir() if path.is_file()]
    unsafe = sorted(path.name for path in files if path.suffix in FORBIDDEN_SUFFIXES)
    if unsafe:
        return f"it holds files that could run code: {', '.join(unsafe)}"
    if not any(path.suffix == ".safetensors" for path in files):
        return "it holds no safetensors weights"
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except ValueError:
        return "its config.json is not valid JSON"
    return "its config.json asks for custom code (auto_map)" if "auto_map" in config else None


def _configs(root: Path) -> Iterator[Path]:
    for depth in range(1, DEPTH + 1):
        yield from root.glob("/".join(["*"] * depth + ["config.json"]))


def _base_model(root: Path, folder: Path) -> BaseModel:
    created_at = datetime.fromtimestamp((folder / "config.json").stat().st_mtime, UTC)
    return BaseModel(folder.relative_to(root).as_posix(), folder, created_at)
