"""Whether the source of a python grader can be read, asked in a process of its own.

Python's parser keeps everybody else in its process waiting, a second for some sources that are allowed, and may end
the process for what is nested too deep. This file is that process's program as well, and imports nothing of ours.
"""

import ast
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

SECONDS = 2
"""Of a processor. The longest source that a request can hold takes one."""
PATIENCE = 30
"""Seconds in all, on a machine that has much else to do."""
MEMORY_BYTES = 1024**3
LEAST_PRIORITY = 19


def fault(source: str) -> str | None:
    """Why ``source`` is no grader; None when it is one. It is not run."""
    command = [sys.executable, "-I", "-S", str(Path(__file__))]
    try:
        done = subprocess.run(
            command, input=source.encode(errors="surrogatepass"), capture_output=True, timeout=PATIENCE, check=False
        )
        answer: dict[str, str | None] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        # It was ended by one of its limits, or by the parser itself.
        return "Python cannot read it: it is nested too deep or takes too long"
    return answer["fault"]


def _fault(source: str) -> str | None:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"Python cannot read it: {error or type(error).__name__}"
    return None if "grade" in _names_bound(tree) else "it must define a function grade(sample, item)"


def _names_bound(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


if __name__ == "__main__":
    os.nice(LEAST_PRIORITY)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    text = sys.stdin.buffer.read().decode(errors="surrogatepass")
    sys.stdout.write(json.dumps({"fault": _fault(text)}))
