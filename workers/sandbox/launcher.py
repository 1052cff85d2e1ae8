"""From a process of the worker to the first of a jail: namespaces, then a root that holds only what Python needs.

``unshare`` builds the root here; ``bubblewrap`` leaves that to ``bwrap``. Either way ``warden.serve`` is what runs as
process 1 of the jail, with capabilities over the jail's namespaces and none over the machine's.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from workers.sandbox import kernel, warden
from workers.sandbox.warden import SCRATCH

NOBODY = 65534
RIGHTS = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from workers.sandbox import launcher; launcher.{entry}(sys.argv[2])"
)
_NAMESPACES = kernel.NEW_MOUNTS | kernel.NEW_PIDS | kernel.NEW_NETWORK | kernel.NEW_IPC | kernel.NEW_HOSTNAME
_OLD = "/old"


def main(text: str) -> None:
    """Become the jail that ``text``, JSON made by ``workers.graders.jail``, describes."""
    config = json.loads(text)
    # The worker makes files for nobody else; the jail's own folders are for the user that graded code takes.
    os.umask(0o022)
    # Should the machine run out of memory all the same, graded code goes before the training it serves.
    Path("/proc/self/oom_score_adj").write_text("1000")
    kernel.die_with_parent()
    if config["cgroup"] is not None:
        (Path(config["cgroup"]) / "cgroup.procs").write_text("0")
    if config["tier"] == "bubblewrap":
        _exec_bubblewrap(config)
    config["sample_user"] = _enter_user_namespace()
    kernel.die_with_parent()  # once more: gaining capabilities has undone it
    kernel.unshare(_NAMESPACES)
    child = os.fork()
    if child == 0:
        kernel.die_with_parent()
        _build_root(config)
        _serve(config)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def serve_inside(text: str) -> None:
    """What ``bwrap`` runs as process 1 of the jail that it made."""
    _serve(json.loads(text))


def _serve(config: dict[str, Any]) -> None:
    sys.path[:] = sys.path[1:] + config["packages"]
    for name in os.environ.keys() - config["environment"]:
        del os.environ[name]
    os.chdir("/")
    os.nice(5)
    warden.serve(config["limits"], config["preload"], config["sample_user"])
    os._exit(0)


def _enter_user_namespace() -> int | None:
    """Enter a user namespace as its user 0; the user that graded code takes in it, None for 0 without capabilities.

    The worker's own user is all that an ordinary process may map. Root maps nobody as well, because limits on the
    number of processes do not bind root.
    """
    user, group = os.geteuid(), os.getegid()
    ready, mapped = os.pipe()
    helper = os.fork() if user == 0 else None
    if helper == 0:
        os.close(mapped)
        # Nothing comes where the parent was refused a namespace; its end is the end of the pipe.
        if not os.read(ready, 1):
            os._exit(1)
        os._exit(_map_users(os.getppid(), f"0 0 1\n{NOBODY} {NOBODY} 1\n"))
    kernel.unshare(kernel.NEW_USER)
    os.write(mapped, b"1")
    os.close(ready)
    os.close(mapped)
    if helper is not None and os.waitpid(helper, 0)[1] == 0:
        return NOBODY
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1\n")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1\n")
    except PermissionError as error:
        raise PermissionError(f"user {user} cannot be mapped ({error}); run the worker as an ordinary user") from None
    return None


def _map_users(process: int, text: str) -> int:
    try:
        Path(f"/proc/{process}/gid_map").write_text(text)
        Path(f"/proc/{process}/uid_map").write_text(text)
    except OSError:
        # Root without the capability to map users: a container that dropped it.
        return 1
    return 0


def _build_root(config: dict[str, Any]) -> None:
    kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)
    # A folder on the way may be a link, which leads elsewhere once the root has moved.
    sources = {path: os.path.realpath(path) for path in [*config["files"], *DEVICES]}
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.NO_SETUID | kernel.NO_DEVICES, "size=1m,mode=755")
    Path("/tmp/old").mkdir()
    kernel.pivot_root("/tmp", "/tmp/old")
    os.chdir("/")
    for path in config["files"]:
        _bind(sources[path], path, devices=False)
    for device in DEVICES:
        _bind(sources[device], device, devices=True)
    for link, target in config["links"]:
        Path(link).parent.mkdir(parents=True, exist_ok=True)
        Path(link).symlink_to(target)
    Path(SCRATCH).mkdir()
    kernel.detach(_OLD)
    Path(_OLD).rmdir()
    kernel.make_read_only("/", devices=True)


def _bind(origin: str, path: str, *, devices: bool) -> None:
    source = Path(_OLD + origin)
    if source.is_dir():
        Path(path).mkdir(parents=True, exist_ok=True)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    kernel.mount(str(source), path, None, kernel.BIND | kernel.RECURSIVE)
    kernel.make_read_only(path, devices=devices)


def _exec_bubblewrap(config: dict[str, Any]) -> None:
    user_namespace = ["--unshare-user", "--uid", "0", "--gid", "0"]
    if os.geteuid() == 0:
        config["sample_user"] = _enter_user_namespace()
        user_namespace = []
    root = str(Path(__file__).parent.parent.parent)
    seen = [*config["files"], *config["code"], *DEVICES, *(link for link, _ in config["links"])]
    # Folders that bwrap makes on its own are closed to all but their owner.
    parents = sorted({str(parent) for path in seen for parent in list(Path(path).parents)[:-1]})
    folders = [word for path in parents for word in ("--perms", "0755", "--dir", path)]
    binds = [word for path in [*config["files"], *config["code"]] for word in ("--ro-bind", path, path)]
    devices = [word for path in DEVICES for word in ("--dev-bind", path, path)]
    links = [word for link, target in config["links"] for word in ("--symlink", target, link)]
    namespaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    life = ["--as-pid-1", "--die-with-parent"]
    rights = ["--cap-drop", "ALL", *(word for name in RIGHTS for word in ("--cap-add", name))]
    end = ["--perms", "0755", "--dir", SCRATCH, "--remount-ro", "/", "--"]
    inside = [sys.executable, "-I", "-S", "-c", BOOT.format(entry="serve_inside"), root, json.dumps(config)]
    os.execv(
        config["bwrap"],
        ["bwrap", *user_namespace, *namespaces, *life, *rights, *folders, *binds, *devices, *links, *end, *inside],
    )
