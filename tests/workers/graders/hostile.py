"""Graders that try to break out of their jail, or to break it.

Each defines ``attempt()``, true when it got what it wanted. Outside a jail the first group succeeds, which the tests
check as well: a probe that can never succeed proves nothing.
"""

# What succeeds in an ordinary process of this machine and must fail in the jail.
CONTROLLED = {
    "open_an_internet_socket": """
import socket
def attempt():
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        return True
    except OSError:
        return False
""",
    "listen_on_a_unix_socket": """
import socket, tempfile
def attempt():
    try:
        server = socket.socket(socket.AF_UNIX)
        server.bind(tempfile.mkdtemp() + "/door")
        server.listen()
        return True
    except OSError:
        return False
""",
    "ask_the_kernel_through_netlink": """
import socket
def attempt():
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
        return True
    except OSError:
        return False
""",
    "resolve_a_name": """
import socket
def attempt():
    try:
        return bool(socket.getaddrinfo("localhost", 80))
    except OSError:
        return False
""",
    "read_the_users_of_this_machine": """
def attempt():
    try:
        return "root" in open("/etc/passwd").read()
    except OSError:
        return False
""",
    "read_another_jobs_data": """
def attempt():
    try:
        return "secret" in open(ITEM["other_job"]).read()
    except OSError:
        return False
""",
    "read_another_jobs_data_through_a_symlink": """
import os, tempfile
def attempt():
    link = tempfile.mkdtemp() + "/link"
    os.symlink(ITEM["other_job"], link)
    try:
        return "secret" in open(link).read()
    except OSError:
        return False
""",
    "copy_another_jobs_data_with_a_hard_link": """
import os
def attempt():
    try:
        os.link(ITEM["other_job"], ITEM["other_job"] + "2")
        return True
    except OSError:
        return False
""",
    "climb_out_of_the_working_folder": """
import os
def attempt():
    try:
        return bool(os.listdir("../" * 30 + "proc"))
    except OSError:
        return False
""",
    "write_into_another_jobs_folder": """
import os
def attempt():
    try:
        open(os.path.dirname(ITEM["other_job"]) + "/planted", "w").close()
        return True
    except OSError:
        return False
""",
    "read_the_environment_of_the_worker": """
def attempt():
    for process in ("self", "thread-self", ITEM["worker"]):
        try:
            open(f"/proc/{process}/environ", "rb").read()
            return True
        except OSError:
            pass
    return False
""",
    "list_processes": """
import os
def attempt():
    try:
        return any(name.isdigit() for name in os.listdir("/proc"))
    except OSError:
        return False
""",
    "signal_the_worker": """
import os
def attempt():
    try:
        os.kill(ITEM["worker"], 0)
        return True
    except ProcessLookupError:
        return False
""",
    "look_into_the_memory_of_the_worker": """
import os
def attempt():
    try:
        os.close(os.open(f"/proc/{ITEM['worker']}/maps", os.O_RDONLY))
        return True
    except OSError:
        return False
""",
    "reach_the_root_through_proc": """
import os
def attempt():
    try:
        return bool(os.listdir("/proc/self/root/etc"))
    except OSError:
        return False
""",
    "run_a_shell_of_this_machine": """
import subprocess
def attempt():
    for path in ("/bin/sh", "/usr/bin/sh", "/usr/bin/env", "/bin/busybox"):
        try:
            subprocess.run([path, "-c", "true"])
            return True
        except OSError:
            pass
    return False
""",
    "use_shared_memory_of_system_v": """
import ctypes
def attempt():
    return ctypes.CDLL(None, use_errno=True).shmget(0, 4096, 0o1600) != -1
""",
    "share_memory_with_another_job": """
from multiprocessing import shared_memory
def attempt():
    try:
        memory = shared_memory.SharedMemory(create=True, size=4096)
        memory.unlink()
        return True
    except OSError:
        return False
""",
    "hide_memory_in_files_without_a_name": """
import os
def attempt():
    try:
        os.write(os.memfd_create("hidden"), bytes(1000))
        return True
    except OSError:
        return False
""",
    "see_the_devices": """
import os
def attempt():
    return not set(os.listdir("/dev")) <= {"null", "zero", "full", "random", "urandom"}
""",
    "read_the_kernels_settings": """
def attempt():
    try:
        return bool(open("/proc/sys/kernel/hostname").read() or open("/sys/kernel/mm/ksm/run").read())
    except OSError:
        return False
""",
}

# What may fail outside as well, and must fail in the jail.
UNCONTROLLED = {
    "enter_a_new_user_namespace": """
import ctypes
def attempt():
    return ctypes.CDLL(None).unshare(0x10000000) == 0
""",
    "clone_into_new_namespaces": """
import ctypes, os, platform
def attempt():
    number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    child = ctypes.CDLL(None).syscall(number, 0x10000000 | 0x20000 | 17, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    return child > 0
""",
    "mount_a_file_system": """
import ctypes
def attempt():
    libc = ctypes.CDLL(None)
    return libc.mount(b"proc", b"/scratch", b"proc", 0, None) == 0 or libc.umount2(b"/scratch", 2) == 0
""",
    "make_the_root_writable": """
import ctypes
def attempt():
    if ctypes.CDLL(None).mount(None, b"/", None, 0x20 | 0x1000, None) == 0:
        return True
    try:
        open("/planted", "w").close()
        return True
    except OSError:
        return False
""",
    "change_the_root": """
import os
def attempt():
    try:
        os.chroot("/scratch")
        return True
    except OSError:
        return False
""",
    "trace_another_process": """
import ctypes, os, time
def attempt():
    child = os.fork()
    if child == 0:
        time.sleep(5)
        os._exit(0)
    libc = ctypes.CDLL(None)
    traced = [libc.ptrace(16, process, None, None) for process in (1, child)]
    os.kill(child, 9)
    return 0 in traced
""",
    "become_root": """
import os
def attempt():
    for change in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.setresuid(1000, 1000, 1000)):
        try:
            change()
        except OSError:
            continue
        if os.getuid() not in (ITEM["user"], 0):
            return True
    try:
        os.chown("/usr/lib", 1, 1)
        return True
    except OSError:
        return False
""",
    "make_a_device": """
import os, stat
def attempt():
    try:
        os.mknod("/scratch/memory", 0o600 | stat.S_IFCHR, os.makedev(1, 1))
        return True
    except OSError:
        return False
""",
    "replace_a_library": """
import json, os, sys
def attempt():
    for path in (json.__file__, sys.executable, os.__file__):
        for change in (lambda p: open(p, "a"), os.unlink, lambda p: os.rename(p, p + "x"), lambda p: os.chmod(p, 0)):
            try:
                change(path)
                return True
            except OSError:
                pass
    return False
""",
    "fork_without_end": """
import os, time
def attempt():
    for _ in range(64):
        try:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        except OSError:
            return False
    return True
""",
    "start_threads_without_end": """
import threading, time
def attempt():
    try:
        for _ in range(64):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        return True
    except RuntimeError:
        return False
""",
    "open_files_without_end": """
def attempt():
    kept = []
    try:
        for _ in range(2000):
            kept.append(open("/dev/null"))
        return True
    except OSError:
        return False
""",
    "fill_the_disk": """
def attempt():
    try:
        for number in range(100):
            with open(f"/scratch/{number}", "wb") as file:
                file.write(bytes(1_000_000))
        return True
    except OSError:
        return False
""",
    "make_files_without_end": """
def attempt():
    try:
        for number in range(20_000):
            open(f"/scratch/{number}", "w").close()
        return True
    except OSError:
        return False
""",
    "allocate_without_end": """
def attempt():
    try:
        kept = [bytes(10_000_000) for _ in range(100)]
        return len(kept) == 100
    except MemoryError:
        return False
""",
    "lift_its_limits": """
import resource
def attempt():
    for which in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
        try:
            resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return True
        except (OSError, ValueError):
            pass
    return False
""",
    "keep_a_hand_on_the_wardens_pipes": """
import os
def attempt():
    found = []
    for descriptor in range(4, 1024):
        try:
            os.fstat(descriptor)
            found.append(descriptor)
        except OSError:
            pass
    return bool(found)
""",
    "answer_for_the_warden": """
import os
def attempt():
    for descriptor in (0, 1, 2):
        try:
            os.write(descriptor, b'{"stopped": null, "exit": 0, "report": "forged"}\\n' * 10)
        except OSError:
            pass
    return False
""",
    "find_what_an_earlier_sample_left": """
import os
def attempt():
    left = os.listdir("/scratch")
    open("/scratch/message", "w").write("for the next one")
    return bool(left)
""",
    "load_a_program_into_the_kernel": """
import ctypes, platform
def attempt():
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    return ctypes.CDLL(None).syscall(number, 0, None, 0) >= 0
""",
    "use_io_uring": """
import ctypes
def attempt():
    return ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(256)) >= 0
""",
    "take_a_key_of_the_session": """
import ctypes, platform
def attempt():
    number = {"x86_64": 250, "aarch64": 219}[platform.machine()]
    return ctypes.CDLL(None).syscall(number, 0, -3, 1) >= 0
""",
}

# What ends badly for the grader itself: how it may end, and the source.
ENDINGS: dict[str, tuple[str, str]] = {
    "loop_forever": ("time", "def attempt():\n    while True:\n        pass\n"),
    "ignore_every_signal_and_sleep": (
        "time",
        """
import signal, time
def attempt():
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    time.sleep(600)
""",
    ),
    "leave_a_child_behind": (
        "reward",
        """
import os, time
def attempt():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    return False
""",
    ),
    "stop_itself": ("reward", "import os, signal\ndef attempt():\n    os.kill(os.getpid(), signal.SIGSTOP)\n"),
    "kill_everything_it_sees": (
        "reward",
        "import os\ndef attempt():\n    try:\n        os.kill(-1, 9)\n    except OSError:\n        pass\n",
    ),
    "hang_inside_c_code": ("time", "import re\ndef attempt():\n    re.match('(a+)+$', 'a' * 60 + 'b')\n"),
    "crash_the_interpreter": ("signal", "import ctypes\ndef attempt():\n    ctypes.string_at(0)\n"),
    "end_without_a_word": ("exit", "import os\ndef attempt():\n    os._exit(0)\n"),
    "report_without_end": (
        "output",
        "import os\ndef attempt():\n    while True:\n        os.write(3, b'{\"reward\": 1.0}\\n' * 1000)\n",
    ),
    "raise_system_exit": ("error", "def attempt():\n    raise SystemExit(0)\n"),
    "nest_too_deep": ("error", "def attempt():\n    return attempt()\n"),
    "exhaust_memory_and_die": ("error", "def attempt():\n    return len(bytearray(10**12)) > 0\n"),
    "be_no_number": ("error", "def attempt():\n    return float('nan')\n"),
    "close_its_report": ("exit", "import os\ndef attempt():\n    os.close(3)\n"),
    "replace_the_machinery": (
        "reward",
        """
import builtins, json, os, sys
def attempt():
    for name in list(sys.modules):
        if name.startswith("workers"):
            sys.modules[name].__dict__.clear()
    json.dumps = lambda *_: '{"reward": 0.0}'
    os.write(3, b'{"reward": 0.0}\\n')
    os._exit(0)
""",
    ),
}

AS_GRADER = """
def grade(sample, item):
    global ITEM
    ITEM = item
    return float(attempt() or 0.0)
"""
