"""The programs that a jail can run: loading a grader, its ``grade``, calls of a function, and a whole script.

Each runs in a process that is about to end, beside code that it does not trust. A report is JSON lines, and whoever
reads it takes it for a claim: it may come from the code and not from here.
"""

import ast
import io
import json
import linecache
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

MAX_TRACEBACK = 2000
MAX_VALUE = 1 << 16
"""Characters of one value that a call may return."""
MAX_NESTING = 50
_NO_GRADE = "the source defines no function 'grade'"


class _NotComparableError(Exception):
    """A value that cannot be told to the outside."""


def run(program: dict[str, Any], report: int) -> None:
    """Run ``program``, write what came of it to the descriptor ``report`` and end the process."""
    _RUN[program["kind"]](program, lambda line: _tell(report, line))
    os._exit(0)


def _load_alone(program: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Load a grader without asking it anything, and import what its functions would import first of all."""
    try:
        namespace = _load(program["source"], "grader.py", "grader")
        if not callable(namespace.get("grade")):
            tell({"error": _NO_GRADE})
            return
        for statement in _imports_of_functions(ast.parse(program["source"])):
            exec(compile(ast.Module([statement], []), "grader.py", "exec"), dict(namespace))
        tell({"loaded": True})
    except BaseException as error:
        tell({"error": _describe(error, "grader.py")})


def _imports_of_functions(tree: ast.Module) -> Iterator[ast.stmt]:
    """The imports that functions carry out whenever they are called: under no condition, and in no ``try``.

    Functions that are called in a ``try`` are left out, for their failure may be expected.
    """
    tried = {
        getattr(call.func, "id", getattr(call.func, "attr", None))
        for guarded in ast.walk(tree)
        if isinstance(guarded, ast.Try)
        for statement in guarded.body
        for call in ast.walk(statement)
        if isinstance(call, ast.Call)
    }
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name not in tried:
            yield from (each for each in function.body if isinstance(each, ast.Import | ast.ImportFrom))


def _grade(program: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    try:
        namespace = _load(program["source"], "grader.py", "grader")
        grade = namespace.get("grade")
        if not callable(grade):
            tell({"error": _NO_GRADE})
            return
        tell(_as_reward(grade(program["sample"], program["item"])))
    except BaseException as error:
        tell({"error": _describe(error, "grader.py")})


def _as_reward(value: Any) -> dict[str, Any]:
    if isinstance(value, str | bytes | bytearray) or not hasattr(type(value), "__float__"):
        return {"error": f"grade returned {type(value).__name__}, not a number"}
    reward = float(value)
    return {"reward": reward} if math.isfinite(reward) else {"error": f"grade returned {reward}, not a finite number"}


def _call(program: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Evaluate each expression after the source; the values go out, so that what is expected need not come in."""
    try:
        namespace = _load(program["source"], "answer.py", "answer")
    except BaseException as error:
        tell({"error": _describe(error, "answer.py")})
        return
    for expression in program["expressions"]:
        try:
            value = eval(compile(expression, "test.py", "eval"), namespace)
            text = json.dumps(plain(value))
            tell({"value": text} if len(text) <= MAX_VALUE else {"error": "the value is too long"})
        except BaseException as error:
            tell({"error": _describe(error, "answer.py")})


def _script(program: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Run the source as a script; what it prints is its result."""
    sys.stdin = io.TextIOWrapper(io.FileIO(0), encoding="utf-8", errors="replace")
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), encoding="utf-8", errors="replace", write_through=False)
    try:
        _load(program["source"], "answer.py", "__main__")
    except SystemExit as error:
        if error.code not in (None, 0):
            tell({"error": f"exit({error.code!r:.100})"})
    except BaseException as error:
        tell({"error": _describe(error, "answer.py")})
    sys.stdout.flush()


_RUN: dict[str, Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], None]] = {
    "load": _load_alone,
    "grade": _grade,
    "call": _call,
    "script": _script,
}


def _load(source: str, file: str, name: str) -> dict[str, Any]:
    # Tracebacks show the lines of a source that is in no file.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    module = type(sys)(name)
    sys.modules[name] = module
    exec(compile(source, file, "exec"), module.__dict__)
    return module.__dict__


def plain(value: Any, depth: int = 0) -> Any:
    """``value`` as JSON that keeps apart what Python tells apart, but for tuples and lists, which come out the same.

    Only exact built-in types count: a subclass could answer for itself when it is compared.
    """
    if depth > MAX_NESTING:
        raise _NotComparableError(f"the value is nested more than {MAX_NESTING} levels deep")
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind in (list, tuple):
        return [plain(each, depth + 1) for each in value]
    if kind in (set, frozenset):
        return {"set": sorted((plain(each, depth + 1) for each in value), key=json.dumps)}
    if kind is dict:
        pairs = [[plain(key, depth + 1), plain(each, depth + 1)] for key, each in value.items()]
        return {"dict": sorted(pairs, key=lambda pair: json.dumps(pair[0]))}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is complex:
        return {"complex": [plain(value.real), plain(value.imag)]}
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return plain(value.tolist(), depth + 1)
    raise _NotComparableError(f"a value of type {kind.__name__} cannot be compared")


def _describe(error: BaseException, file: str) -> str:
    """The traceback from the first frame of ``file`` on, its end if it is long."""
    if isinstance(error, _NotComparableError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [index for index, frame in enumerate(frames) if frame.filename == file]
    shown = "".join(traceback.format_list(frames[own[0] :])) if own else ""
    text = shown + "".join(traceback.format_exception_only(error))
    return text if len(text) <= MAX_TRACEBACK else "…" + text[-MAX_TRACEBACK:]


def _tell(report: int, line: dict[str, Any]) -> None:
    data = json.dumps(line).encode() + b"\n"
    while data:
        data = data[os.write(report, data) :]
