"""The system calls that Python 3.11 does not wrap. Each raises ``OSError`` with the name of the call."""

import contextlib
import ctypes
import os

NEW_MOUNTS = 0x00020000
NEW_CGROUP = 0x02000000
NEW_HOSTNAME = 0x04000000
NEW_IPC = 0x08000000
NEW_USER = 0x10000000
NEW_PIDS = 0x20000000
NEW_NETWORK = 0x40000000

NO_SETUID, NO_DEVICES, BIND, RECURSIVE, PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_DETACH = 2
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 24, 38, 47
_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION = 0x20080522
_MOUNT_SETATTR = 442  # the same number on every architecture
_AT_RECURSIVE = 0x8000
_ATTR_READ_ONLY, _ATTR_NO_SETUID, _ATTR_NO_DEVICES = 0x1, 0x2, 0x4
_SIGKILL = 9

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace")]


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def unshare(namespaces: int) -> None:
    _check(_libc.unshare(namespaces), f"unshare({namespaces:#x})")


def join(descriptor: int, namespaces: int) -> None:
    _check(_libc.setns(descriptor, namespaces), f"setns({namespaces:#x})")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    kind_bytes = None if kind is None else kind.encode()
    result = _libc.mount(source.encode(), target.encode(), kind_bytes, ctypes.c_ulong(flags), options.encode())
    _check(result, f"mount({kind or source} on {target})")


def make_read_only(target: str, *, devices: bool = False) -> None:
    """Make the mount at ``target`` and all beneath it read-only, without set-user-id and, by default, devices."""
    wanted = _ATTR_READ_ONLY | _ATTR_NO_SETUID | (0 if devices else _ATTR_NO_DEVICES)
    attributes = _MountAttributes(set=wanted)
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_long(-100),
        target.encode(),
        ctypes.c_ulong(_AT_RECURSIVE),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(result, f"mount_setattr({target})")


def pivot_root(new: str, old: str) -> None:
    _check(_libc.pivot_root(new.encode(), old.encode()), f"pivot_root({new})")


def detach(target: str) -> None:
    _check(_libc.umount2(target.encode(), _DETACH), f"umount2({target})")


def prctl(option: int, *arguments: int | ctypes.c_void_p) -> None:
    padded = [*arguments, *[0] * (4 - len(arguments))]
    given = [each if isinstance(each, ctypes.c_void_p) else ctypes.c_ulong(each) for each in padded]
    _check(_libc.prctl(option, *given), f"prctl({option})")


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends, whatever ends it."""
    prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def forbid_new_privileges() -> None:
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability for good: neither set-user-id files nor being user 0 brings one back."""
    for capability in range(64):
        # Numbers past the kernel's last capability are invalid.
        with contextlib.suppress(OSError):
            prctl(_PR_CAPBSET_DROP, capability)
    prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    header = _CapabilityHeader(version=_CAPABILITY_VERSION, pid=0)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")
