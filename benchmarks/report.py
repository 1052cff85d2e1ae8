"""What the benchmarks share: timing side by side, peak memory, the machine in words, and a section of a document."""

import ctypes
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
_TITLE = "# Benchmarks\n\nEvery section is written by the script it names, from one run; run the script to renew it.\n"


def synchronize() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def best_times(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Best seconds of each run over `rounds`, one after the other in every round so that all see the same machine."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def peak_bytes(run: Callable[[], object]) -> int:
    """Peak memory `run` adds to what is held before it, after one run to warm up. On a CPU this needs Linux."""
    run()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    # What the allocator kept from the first run would hide what the second one needs.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return int(match[1]) * 1024


def in_fresh_process(module: str, arguments: Sequence[str]) -> dict[str, float]:
    """Runs `python -m module arguments` and reads the JSON object on its last line."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=DOCUMENT.parents[1])
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def machine(packages: Sequence[str] = ("torch",)) -> str:
    """The machine and the versions of `packages`, in one line."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{_processor()}, {torch.get_num_threads()} threads"
    )
    return ", ".join(
        [device, f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in packages)]
    )


def _processor() -> str:
    match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    features = "AVX-512" if "avx512f" in Path("/proc/cpuinfo").read_text() else "no AVX-512"
    return f"{match[1].strip() if match else platform.machine()} ({features})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_section(name: str, title: str, body: str, document: Path = DOCUMENT) -> None:
    """Prints a section, and puts it in the document in place of the section of the same name."""
    print(f"\n{title}\n\n{body}")
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n## {title}\n\n{body}\n{end}"
    text = document.read_text() if document.exists() else _TITLE
    if begin in text:
        head, rest = text.split(begin, 1)
        text = head + section + rest.split(end, 1)[1]
    else:
        text = text.rstrip() + "\n\n" + section + "\n"
    document.write_text(text)
