"""A process that compares mathematical answers for ``workers.graders.math_verify``, one JSON line at a time.

SymPy can take for ever, or all memory, over what looks like a small expression, and ``math-verify``'s own time-outs are
alarms, which do not work outside the main thread and interrupt nothing inside C code. So the comparison is in a process
that can be killed.
"""

import json
import logging
import os
import re
import resource
import sys
from typing import Any

from workers.sandbox import seccomp
from workers.sandbox.notation import answer_in, rewritten

BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    "from workers.sandbox import mathematics; mathematics.serve(int(sys.argv[2]))"
)
MEMORY_BYTES = 2 * 1024**3
SMALL = 1e-3
LONGEST = 1000
"""Characters of an answer that are told."""
_MARK = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[")


def serve(packages: int) -> None:
    """Answer ``{"reference", "answer"}`` lines until standard input ends.

    The first line of an answer, ``{"reference": bool}``, says whether the reference could be read; the second,
    ``{"equal": bool}``, follows if so, and then ``{"read": str}``, the answer in one notation. ``packages`` is how many
    of the last arguments are folders to import from.
    """
    sys.path[:] = sys.path[1:] + sys.argv[len(sys.argv) - packages :]
    logging.disable(logging.CRITICAL)
    import math_verify

    answers = os.dup(1)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Parsers of what a model wrote: they get no network and start nothing with rights.
    seccomp.install()
    _tell(answers, {"ready": True})
    for line in sys.stdin.buffer:
        task = json.loads(line)
        reference = math_verify.parse(_delimited(rewritten(task["reference"])), parsing_timeout=None)
        _tell(answers, {"reference": bool(reference)})
        if reference:
            text = rewritten(answer_in(task["answer"]))
            answer = math_verify.parse(text, extraction_config=_configs(math_verify), parsing_timeout=None)
            equal = bool(math_verify.verify(reference, answer, timeout_seconds=None)) and _as_small(reference, answer)
            _tell(answers, {"equal": equal})
            _tell(answers, {"read": _written(answer)})


def _delimited(reference: str) -> str:
    """A reference as LaTeX: without delimiters only numbers would be seen, and of ``\\frac{1}{2}`` only the 1."""
    return reference if _MARK.search(reference) else f"\\boxed{{{reference}}}"


def _written(answer: list[Any]) -> str:
    """The object that was read, numbers as decimals, so that 1/2 and 0.5 are the same; empty where there is none."""
    if not answer:
        return ""
    try:
        return str(answer[0].evalf(12) if answer[0].is_number else answer[0])[:LONGEST]
    except Exception:
        # SymPy raises whatever it likes over what it cannot evaluate.
        return str(answer[1])[:LONGEST]


def _as_small(reference: list[Any], answer: list[Any]) -> bool:
    """Whether numbers that agree to six decimals do so to three digits as well, as far as both are small numbers."""
    ends = [each[0] for each in (reference, answer)]
    if not all(getattr(each, "is_number", False) for each in ends):
        return True
    try:
        wanted, found = (complex(each if each.is_Number else each.evalf(15)) for each in ends)
    except (TypeError, ValueError, OverflowError):
        return True
    return abs(wanted) >= SMALL or abs(wanted - found) <= SMALL * abs(wanted)


def _configs(library: Any) -> list[Any]:
    return [library.LatexExtractionConfig(boxed_match_priority=0), library.ExprExtractionConfig()]


def _tell(descriptor: int, line: dict[str, Any]) -> None:
    os.write(descriptor, json.dumps(line).encode() + b"\n")
