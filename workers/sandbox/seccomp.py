"""The system calls that graded code may not make, as a filter that the kernel runs on each of them.

Namespaces already take away what these calls reach; the filter takes away the calls, so that a mistake in one layer,
or in the kernel code behind a rarely used call, is not enough. It lists what is denied rather than what is allowed:
Python and its libraries call nearly everything else.
"""

import ctypes
import errno
import platform
import struct

from workers.sandbox import kernel


def _table(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in (entry.split("=") for entry in text.split())}


_BOTH = _table("""
    io_uring_setup=425 io_uring_enter=426 io_uring_register=427 open_tree=428 move_mount=429
    fsopen=430 fsconfig=431 fsmount=432 fspick=433 pidfd_getfd=438 process_madvise=440
    mount_setattr=442 memfd_secret=447
""")
_DENIED = {
    "x86_64": _table("""
    socket=41 ptrace=101 process_vm_readv=310 process_vm_writev=311 kcmp=312
    mount=165 umount2=166 pivot_root=155 chroot=161 unshare=272 setns=308
    add_key=248 request_key=249 keyctl=250 bpf=321 perf_event_open=298 userfaultfd=323
    kexec_load=246 kexec_file_load=320 init_module=175 finit_module=313 delete_module=176
    memfd_create=319 shmget=29 shmat=30 semget=64 msgget=68 mq_open=240
    name_to_handle_at=303 open_by_handle_at=304 swapon=167 swapoff=168 reboot=169
    sethostname=170 setdomainname=171 iopl=172 ioperm=173 modify_ldt=154 acct=163
    settimeofday=164 clock_settime=227 adjtimex=159 quotactl=179 personality=135
    syslog=103 lookup_dcookie=212
"""),
    "aarch64": _table("""
    socket=198 ptrace=117 process_vm_readv=270 process_vm_writev=271 kcmp=272
    mount=40 umount2=39 pivot_root=41 chroot=51 unshare=97 setns=268
    add_key=217 request_key=218 keyctl=219 bpf=280 perf_event_open=241 userfaultfd=282
    kexec_load=104 kexec_file_load=294 init_module=105 finit_module=273 delete_module=106
    memfd_create=279 shmget=194 shmat=196 semget=190 msgget=186 mq_open=180
    name_to_handle_at=264 open_by_handle_at=265 swapon=224 swapoff=225 reboot=142
    sethostname=161 setdomainname=162 acct=89
    settimeofday=170 clock_settime=112 adjtimex=171 quotactl=60 personality=92
    syslog=116 lookup_dcookie=18
"""),
}
_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_ANY_NAMESPACE = (
    kernel.NEW_MOUNTS
    | kernel.NEW_CGROUP
    | kernel.NEW_HOSTNAME
    | kernel.NEW_IPC
    | kernel.NEW_USER
    | kernel.NEW_PIDS
    | kernel.NEW_NETWORK
)
_X32 = 0x40000000

# Offsets in struct seccomp_data and codes of classic BPF.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def install() -> None:
    """Filter this process and its children from now on. Raises ``OSError`` where no filter is known for the machine."""
    instructions = _instructions(platform.machine())
    program = _Program(len(instructions), b"".join(instructions))
    kernel.forbid_new_privileges()
    kernel.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.cast(ctypes.byref(program), ctypes.c_void_p))


def _instructions(machine: str) -> list[bytes]:
    if machine not in _DENIED:
        raise OSError(errno.ENOSYS, f"no list of system calls for {machine}; known: {', '.join(_DENIED)}")
    deny, unknown = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    program = [
        _step(_LOAD, _ARCHITECTURE),
        *_when(_IF_EQUAL, _AUDIT_ARCHITECTURE[machine], otherwise=_KILL),
        _step(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        program += _when(_IF_AT_LEAST, _X32, then=_KILL)
    for number in sorted([*_DENIED[machine].values(), *_BOTH.values()]):
        program += _when(_IF_EQUAL, number, then=deny)
    # The flags of clone3 are behind a pointer, where a filter cannot look; without it the C library uses clone.
    program += _when(_IF_EQUAL, _CLONE3, then=unknown)
    program += [_step(_IF_EQUAL, _CLONE[machine], 0, 3), _step(_LOAD, _FIRST_ARGUMENT)]
    program += _when(_IF_ANY_BIT, _ANY_NAMESPACE, then=deny)
    return [*program, _step(_RETURN, _ALLOW)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _when(test: int, value: int, *, then: int | None = None, otherwise: int | None = None) -> list[bytes]:
    """Return ``then`` when the test holds, or ``otherwise`` when it does not; else go on."""
    if then is not None:
        return [_step(test, value, 0, 1), _step(_RETURN, then)]
    assert otherwise is not None
    return [_step(test, value, 1, 0), _step(_RETURN, otherwise)]
