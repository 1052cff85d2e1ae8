"""Event files of TensorBoard: written beside every job, whatever else it reports to.

The format is records of length, checksum, data, checksum, where the data is a protobuf message ``Event``; both have
not changed since 2016. They are written here because every package that does imports torch or TensorFlow, and this runs
in the supervisor.
"""

import struct
from collections.abc import Mapping
from pathlib import Path

_POLYNOMIAL = 0x82F63B78
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5
"""Protobuf's kinds of fields."""
_WALL_TIME, _STEP, _VERSION, _SUMMARY, _SESSION_LOG = 1, 2, 3, 5, 7
"""Fields of ``Event``."""
_START = 1
"""``SessionLog.START``: readers forget what an earlier file said of this step and those behind it."""


class EventFile:
    """One file, which begins a run anew: who reads several of a folder takes the steps of the newest."""

    def __init__(self, path: Path, time: float) -> None:
        """``time`` is in seconds since 1970. Raises ``OSError``."""
        self._file = path.open("wb")
        self._write(_double(_WALL_TIME, time) + _bytes(_VERSION, b"brain.Event:2"))
        self._write(_double(_WALL_TIME, time) + _varint(_STEP, 0) + _bytes(_SESSION_LOG, _varint(1, _START)))

    def add(self, step: int, time: float, numbers: Mapping[str, float]) -> None:
        """Write the scalars of a step, by tag. Raises ``OSError``."""
        values = b"".join(
            _bytes(1, _bytes(1, tag.encode()) + _key(2, _FLOAT) + struct.pack("<f", _single(number)))
            for tag, number in numbers.items()
        )
        self._write(_double(_WALL_TIME, time) + _varint(_STEP, step) + _bytes(_SUMMARY, values))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked(length) + event + _masked(event))
        # Whoever watches sees whole steps.
        self._file.flush()


def _single(number: float) -> float:
    """``number`` in single precision, or infinity where that cannot hold it."""
    try:
        return struct.unpack("<f", struct.pack("<f", number))[0]  # type: ignore[no-any-return]
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")


def _key(field: int, kind: int) -> bytes:
    return bytes([field << 3 | kind])


def _varint(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _length(value)


def _double(field: int, value: float) -> bytes:
    return _key(field, _DOUBLE) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, _BYTES) + _length(len(value)) + value


def _length(value: int) -> bytes:
    """``value`` in groups of seven bits, the lowest first."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _table() -> list[int]:
    table = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (_POLYNOMIAL if entry & 1 else 0)
        table.append(entry)
    return table


_TABLE = _table()


def _masked(data: bytes) -> bytes:
    """CRC-32C of ``data``, turned as the format wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
