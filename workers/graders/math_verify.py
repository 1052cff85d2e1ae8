"""``math_verify``: is the answer the same mathematical object as the reference? By the ``math-verify`` library.

1/2, 0.5 and \\frac{1}{2} are the same; the answer is looked for in the text, a \\boxed one first. Comparisons run in a
few processes that live as long as the grader, and are killed when they take too long.
"""

import json
import queue
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

from service.contracts import strict_json
from service.graders.kinds.math_verify import MathVerify
from service.graders.settings import GraderSettings
from service.graders.template import Template
from workers.graders.grading import Grade, GraderSample, SingleGrader, fill
from workers.graders.jail import ENVIRONMENT, ROOT, packages
from workers.sandbox.mathematics import BOOT

PROCESSES = 2
SECONDS = 10.0
START_SECONDS = 60.0


class TookTooLongError(Exception):
    """The process was killed for its time or ended for lack of memory; ``reference_read`` says how far it had come."""

    def __init__(self, reference_read: bool) -> None:
        super().__init__("the comparison took too long or too much memory")
        self.reference_read = reference_read


class MathVerifyGrader(SingleGrader):
    def __init__(self, definition: MathVerify, settings: GraderSettings) -> None:
        self._templates = (Template.parse(definition.input), Template.parse(definition.reference))
        self._comparers: queue.LifoQueue[Comparer] = queue.LifoQueue()  # the warm ones first
        for _ in range(PROCESSES):
            self._comparers.put(Comparer())

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        with ThreadPoolExecutor(PROCESSES, thread_name_prefix="math") as pool:
            return list(pool.map(self._grade, samples))

    def _grade(self, sample: GraderSample) -> Grade:
        texts = fill(self._templates, sample)
        if isinstance(texts, Grade):
            return texts
        answer, reference = texts
        comparer = self._comparers.get()
        try:
            compared = comparer.compare(answer, reference)
        except TookTooLongError as error:
            return _unfinished(error, reference)
        except OSError as error:
            return Grade(None, error="other_error", detail=f"The comparing process does not start: {error}")
        finally:
            self._comparers.put(comparer)
        if compared is None:
            return Grade(None, error="other_error", detail=f"The reference is not mathematics: '{reference[:200]}'.")
        return Grade(float(compared.equal), extracted=compared.read)


def _unfinished(error: TookTooLongError, reference: str) -> Grade:
    if error.reference_read:
        detail = "Comparing the answer took too long or too much memory."
        return Grade(None, error="sample_parse_error", detail=detail, sample_at_fault=True)
    detail = f"Reading the reference took too long or too much memory: '{reference[:200]}'."
    return Grade(None, error="other_error", detail=detail)


class Compared(NamedTuple):
    equal: bool
    read: str | None
    """The mathematical object that was read out of the answer, in a notation of its own."""


class Comparer:
    """One process of ``workers.sandbox.mathematics``, started when it is first needed and again after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def compare(self, answer: str, reference: str) -> Compared | None:
        """None for an unreadable reference. Raises ``TookTooLongError``, ``OSError``."""
        process = self._process or self._start()
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        try:
            read = _ask(process, {"answer": answer, "reference": reference})
            if read is None:
                raise TookTooLongError(reference_read=False)
            if not read["reference"]:
                return None
            compared = _answer(process)
            if compared is None:
                raise TookTooLongError(reference_read=True)
            read = _answer(process)
            if read is None:
                # What was to be found out is known: only how the answer would be written took too long.
                self._end()
            return Compared(compared["equal"], (read or {}).get("read") or None)
        except TookTooLongError:
            self._end()
            raise
        finally:
            timer.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        folders = packages()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", BOOT, str(ROOT), str(len(folders)), *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT | {"HOME": "/", "TMPDIR": "/"},
            cwd="/",
        )
        weakref.finalize(self, _kill, process)
        timer = threading.Timer(START_SECONDS, process.kill)
        timer.start()
        try:
            if _answer(process) is None:
                _kill(process)
                raise OSError("it ended at once; is math-verify installed?")
        finally:
            timer.cancel()
        self._process = process
        return process

    def _end(self) -> None:
        if self._process is not None:
            _kill(self._process)
            self._process = None


def _ask(process: subprocess.Popen[bytes], task: dict[str, str]) -> dict[str, Any] | None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    return _answer(process)


def _answer(process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    """The next line, None when the process has ended."""
    assert process.stdout is not None
    try:
        value = strict_json.loads(process.stdout.readline().decode())
    except strict_json.InvalidJSONError:
        return None
    return value if isinstance(value, dict) else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
