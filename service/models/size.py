"""How many parameters a model's folder holds, by the headers of its weights; the weights are not read."""

import json
import math
from functools import lru_cache
from pathlib import Path

MAX_HEADER_BYTES = 100 * 1024**2
"""As the format has it."""

Stamp = tuple[tuple[str, int, int], ...]


def parameters(folder: Path) -> int | None:
    """None where the folder's weights cannot be read."""
    try:
        files = sorted(folder.glob("*.safetensors"))
        stats = [file.stat() for file in files]
    except OSError:
        return None
    stamp = tuple((file.name, stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True))
    return _parameters(folder, stamp)


@lru_cache(maxsize=1024)
def _parameters(folder: Path, stamp: Stamp) -> int | None:
    try:
        counted = sum(_elements(folder / name) for name, _, _ in stamp)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return counted or None


def _elements(file: Path) -> int:
    """Elements of all tensors of a safetensors file. Raises ``ValueError`` for what is none."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError(f"{file} has no header")
        header = json.loads(opened.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
