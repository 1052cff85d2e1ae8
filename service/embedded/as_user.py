"""``python as_user.py UID GID CAPABILITY COMMAND…``: run COMMAND as another user, which root becomes for good.

Of root's rights it keeps CAPABILITY, a number, or none for ``-``. util-linux' ``setpriv`` does the same, but is not
everywhere. This file is a program and imports nothing of ours.
"""

import ctypes
import os
import sys

_CAPABILITY_VERSION = 0x20080522
_SET_KEEP_CAPABILITIES = 8
_AMBIENT, _AMBIENT_RAISE = 47, 2


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


_libc = ctypes.CDLL(None, use_errno=True)


def main(user: int, group: int, capability: int | None, command: list[str]) -> None:
    """Raises ``OSError`` where this process may not do what it should."""
    os.setgroups([])
    os.setresgid(group, group, group)
    _prctl(_SET_KEEP_CAPABILITIES, 1)
    os.setresuid(user, user, user)
    _keep(capability)
    os.execv(command[0], command)


def _keep(capability: int | None) -> None:
    """Give up every capability but this one, which goes through ``execve`` as well."""
    words = [0, 0]
    if capability is not None:
        words[capability // 32] = 1 << capability % 32
    # Effective, permitted and inheritable, first the lower halves and then the upper ones.
    sets = (ctypes.c_uint32 * 6)(*(word for word in words for _ in range(3)))
    header = _Header(version=_CAPABILITY_VERSION, pid=0)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(sets)), "capset")
    if capability is not None:
        _prctl(_AMBIENT, _AMBIENT_RAISE, capability)


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(each) for each in [*arguments, *[0] * (4 - len(arguments))]]
    _check(_libc.prctl(option, *padded), f"prctl({option})")


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), None if sys.argv[3] == "-" else int(sys.argv[3]), sys.argv[4:])
    except OSError as error:
        sys.exit(f"user {sys.argv[1]} cannot run {sys.argv[4]}: {error}")
