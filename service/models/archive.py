"""What a model folder holds, by name and checksum, and all of it as a tar that is made while it is sent.

The tar's bytes follow from the files alone, so any part of it can be made without what comes before.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

CHUNK = 1024 * 1024
"""Bytes that are read at a time."""


@dataclass(frozen=True)
class ModelFile:
    """A file of a model folder. ``name`` is its path within it, ``sha256`` in hexadecimal."""

    name: str
    path: Path
    size: int
    sha256: str

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'


ADAPTER = "adapter"
"""The folder within a model's that holds the adapter its weights were made with."""


def contents(folder: Path) -> list[ModelFile]:
    """The files of ``folder`` and of its adapter, by name."""
    names = [*_names(folder, ""), *_names(folder / ADAPTER, f"{ADAPTER}/")]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda name: _file(name, folder / name), names))


def _names(folder: Path, prefix: str) -> list[str]:
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(prefix + path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink())


def _file(name: str, path: Path) -> ModelFile:
    stat = path.stat()
    return ModelFile(name, path, stat.st_size, _sha256(path, stat.st_size, stat.st_mtime_ns, stat.st_ino))


@lru_cache(maxsize=10_000)
def _sha256(path: Path, size: int, changed: int, inode: int) -> str:
    """Read again only when the file is another one: weights are large."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_file(file: ModelFile, first: int, end: int) -> Iterator[bytes]:
    with file.path.open("rb") as source:
        source.seek(first)
        while first < end and (chunk := source.read(min(CHUNK, end - first))):
            first += len(chunk)
            yield chunk


def size(files: list[ModelFile]) -> int:
    """Bytes of the whole tar."""
    blocks = sum(1 + -(-file.size // tarfile.BLOCKSIZE) for file in files)
    return blocks * tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE


def etag(files: list[ModelFile]) -> str:
    """A tag of the tar: other files, another tag."""
    lines = "".join(f"{file.sha256} {file.name}\n" for file in files)
    return f'"{hashlib.sha256(lines.encode()).hexdigest()}"'


def read(files: list[ModelFile], first: int, end: int) -> Iterator[bytes]:
    """The bytes of the tar from ``first`` to before ``end``."""
    position = 0
    for file in files:
        for segment in (_header(file), file, b"\0" * (-file.size % tarfile.BLOCKSIZE)):
            length = segment.size if isinstance(segment, ModelFile) else len(segment)
            low, high = max(first - position, 0), min(end - position, length)
            if low < high:
                yield from read_file(segment, low, high) if isinstance(segment, ModelFile) else [segment[low:high]]
            position += length
    yield b"\0" * (min(end, position + 2 * tarfile.BLOCKSIZE) - max(first, position))


def _header(file: ModelFile) -> bytes:
    header = tarfile.TarInfo(file.name)
    header.size, header.mode = file.size, 0o644
    return header.tobuf(tarfile.USTAR_FORMAT if header.size < 8 * 1024**3 else tarfile.GNU_FORMAT)
