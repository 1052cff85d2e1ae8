"""What ``troll doctor`` cannot see without a worker's libraries: ``python -m workers.doctor`` says it as JSON lines.

What this machine lacks is a finding, and no exception.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from service.contracts.engines import ENGINES
from service.contracts.finding import Finding
from service.graders.configured import grader_settings

DEVICES = ("/dev/nvidiactl", "/dev/kfd")


def findings() -> Iterator[Finding]:
    """Everything that is looked at, one after the other."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (_gpus, _compiler, _engines, _jail, _seccomp, _groups)
    for look in looks:
        yield from look()


def _gpus() -> Iterator[Finding]:
    import torch

    version, runtime = f"torch {torch.__version__}", torch.version.cuda or torch.version.hip
    if not torch.cuda.is_available():
        if any(Path(device).exists() for device in DEVICES):
            found, remedy = f"{version} cannot use the one that is here", "Install a driver and a torch that fit it."
            yield Finding(what="GPU", state="fails", found=found, remedy=remedy)
            return
        remedy = "Tiny models are trained on CPUs. For others, give this machine or container a GPU."
        yield Finding(what="GPU", state="warning", found=f"none; {version}", remedy=remedy)
        return
    for n in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(n)
        memory = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        found = f"{torch.cuda.get_device_name(n)}, {memory}; {version} for {runtime}"
        taken = free < total / 2
        remedy = "'nvidia-smi' shows what else is on it: jobs may take what is free." if taken else ""
        yield Finding(what=f"GPU {n}", state="warning" if taken else "holds", found=found, remedy=remedy)


def _compiler() -> Iterator[Finding]:
    """What Triton and torch build a GPU's kernels with when they are first used, looked for where Triton does."""
    import torch

    if not torch.cuda.is_available():
        return
    found = os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")
    if found:
        yield Finding(what="C compiler", state="holds", found=found)
        return
    remedy = "Install gcc, or name another in CC: what runs on a GPU is built when it is first used."
    yield Finding(what="C compiler", state="fails", found="none", remedy=remedy)


def _engines() -> Iterator[Finding]:
    asked = {os.environ.get(name) for name in ("TROLL_ROLLOUT_ENGINE", "TROLL_SERVING_ENGINE")}
    for name, engine in ENGINES.items():
        if importlib.util.find_spec(engine.module) is not None:
            version = _version(engine.module) or _version(f"{engine.module}-cpu")
            yield Finding(what=engine.title, state="holds", found=version)
        elif name in asked:
            remedy = f"Install the extra '{name}' beside the workers: the settings name it."
            yield Finding(what=engine.title, state="fails", found="not installed", remedy=remedy)
        else:
            remedy = f"Jobs that ask for it wait for a worker that has the extra '{name}'."
            yield Finding(what=engine.title, state="warning", found="not installed", remedy=remedy)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _jail() -> Iterator[Finding]:
    from workers.graders.confinement import ensure_confined
    from workers.graders.jail import JailError

    settings = grader_settings()
    if settings.jail == "off":
        remedy = "python and code_tests graders are refused. Name a jail in TROLL_GRADERS: see docs/graders.md."
        yield Finding(what="jail", state="warning", found="off", remedy=remedy)
        return
    try:
        ensure_confined(settings)
    except JailError as error:
        remedy = "See 'The jail' in docs/graders.md: which calls the container or kernel has to allow."
        yield Finding(what="jail", state="fails", found=str(error), remedy=remedy)
        return
    yield Finding(what="jail", state="holds", found=f"{settings.jail}: code in it could do nothing that it must not")


def _seccomp() -> Iterator[Finding]:
    """Whether the jail's filter of system calls can be installed, in a process that ends with it."""
    program = "from workers.sandbox import seccomp; seccomp.install()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        yield Finding(what="seccomp", state="holds", found="jails can filter system calls")
        return
    said = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
    remedy = "Run workers on x86-64 or arm64, on a kernel with CONFIG_SECCOMP_FILTER: jails filter system calls."
    yield Finding(what="seccomp", state="fails", found=said, remedy=remedy)


def _groups() -> Iterator[Finding]:
    parent = grader_settings().jail_cgroup
    if parent is None:
        remedy = "Limits of graders' code hold for each of its processes; name a cgroup in TROLL_GRADERS for the sum."
        yield Finding(what="cgroup of jails", state="warning", found="none", remedy=remedy)
        return
    from workers.graders import cgroup

    try:
        group = cgroup.make(parent, grader_settings().jail_limits)
    except OSError as error:
        remedy = "The workers' user has to own it, with the controllers memory and pids: see docs/graders.md."
        yield Finding(what="cgroup of jails", state="fails", found=f"{parent}: {error.strerror}", remedy=remedy)
        return
    if group is not None:
        cgroup.remove(group)
    yield Finding(what="cgroup of jails", state="holds", found=str(parent))


if __name__ == "__main__":
    for finding in findings():
        print(finding.model_dump_json(), flush=True)
