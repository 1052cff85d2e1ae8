"""A model folder as a tar stream, made while it is sent and never stored."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from service.core.storage import CHUNK


def size(folder: Path) -> int:
    """Bytes that ``stream`` will yield."""
    blocks = sum(1 + -(-path.stat().st_size // tarfile.BLOCKSIZE) for path in _files(folder))
    return blocks * tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE


def stream(folder: Path) -> Iterator[bytes]:
    """The files of ``folder``, by name, as an uncompressed tar: the same bytes for the same files."""
    for path in _files(folder):
        header = tarfile.TarInfo(path.name)
        header.size, header.mode = path.stat().st_size, 0o644
        yield header.tobuf(tarfile.USTAR_FORMAT if header.size < 8 * 1024**3 else tarfile.GNU_FORMAT)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
        yield b"\0" * (-header.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
