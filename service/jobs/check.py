"""Everything about training data that can be checked without a model: what ``submit`` refuses, and what it warns of.

The same check runs offline, before anything is uploaded: ``check(training, validation, grader)`` needs no server.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.files import dataset
from service.files.dataset import DatasetReport
from service.graders.schemas import Grader
from service.jobs.methods.registry import METHODS, type_of
from service.jobs.methods.reinforcement import Reinforcement

MAX_TRAINING_ROWS = 500_000
MAX_VALIDATION_ROWS = 5_000
LINES_SHOWN = 5


@dataclass
class Findings:
    """``errors`` are refused at submission, ``warnings`` are not; each names its file."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return not self.errors


def check(
    training: Path,
    validation: Path | None = None,
    grader: Grader | None = None,
    *,
    method: str | None = None,
    max_training_rows: int = MAX_TRAINING_ROWS,
    max_validation_rows: int = MAX_VALIDATION_ROWS,
) -> Findings:
    """Check the files of a job of ``method`` as the service would; without one, of the method the first row is for.

    With ``grader`` the method is reinforcement, and each row must have every field it reads.
    """
    method = method or (type_of(Reinforcement) if grader else method_of(training))
    findings = Findings()
    for path, limit in ((training, max_training_rows), (validation, max_validation_rows)):
        if path is None:
            continue
        report = report_on(path, method, grader)
        if report.problems:
            findings.errors.append(f"{path.name}: {dataset.summarise(report)}")
        if report.rows > limit:
            findings.errors.append(f"{path.name}: {too_many_rows(report.rows, limit)}")
    if findings.usable:
        findings.warnings = warnings({training.name: training}, {validation.name: validation} if validation else {})
    return findings


def method_of(training: Path) -> str:
    """The method that the first row of a file is for."""
    row = dataset.first_row(training) or {}
    return next((name for name, kind in METHODS.items() if kind.fits(row)), type_of(Reinforcement))


def report_on(path: Path, method: str, grader: Grader | None, give_up_at: float | None = None) -> DatasetReport:
    """What is wrong with a file of a job of ``method``. Raises ``TimeoutError`` at ``give_up_at``."""
    return METHODS[method].check_file(path, grader, give_up_at)


def too_many_rows(rows: int, limit: int) -> str:
    return f"{rows} rows are more than the {limit} allowed; leave some out"


def warnings(training: Mapping[str, Path], evaluated: Mapping[str, Path], give_up_at: float | None = None) -> list[str]:
    """Rows that repeat others, and rows to evaluate on that the model is trained on. Files, by name, must be valid.

    ``training`` is one file, or none. Raises ``TimeoutError`` at ``give_up_at``, a monotonic time.
    """
    asked: dict[bytes, int] = {}
    found: list[str] = []
    trained_on = ""
    for trained_on, path in training.items():
        asked, found = _repetitions(path, trained_on, give_up_at)
    for name, path in evaluated.items():
        theirs, repeated = _repetitions(path, name, give_up_at)
        found += repeated
        shared = [line for question, line in theirs.items() if question in asked]
        if shared:
            count = f"{len(shared)} of the {len(theirs)} conversations in {name}"
            found.append(f"{count} are in {trained_on} too, so that it measures memory: {_lines(shared)}")
    return found


def _repetitions(path: Path, name: str, give_up_at: float | None) -> tuple[dict[bytes, int], list[str]]:
    """The first line of each conversation of a file, by its digest, and a warning if whole rows are repeated."""
    seen: set[bytes] = set()
    asked: dict[bytes, int] = {}
    again: list[int] = []
    for line, row in dataset.rows(path):
        dataset.check_time(give_up_at)
        digest = _digest(row)
        if digest in seen:
            again.append(line)
        seen.add(digest)
        asked.setdefault(_digest([row["messages"], row.get("tools")]), line)
    return asked, [f"{len(again)} rows of {name} repeat earlier ones: {_lines(again)}"] if again else []


def _digest(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _lines(numbers: list[int]) -> str:
    shown, rest = ", ".join(str(number) for number in numbers[:LINES_SHOWN]), len(numbers) - LINES_SHOWN
    return f"line{'s' if len(numbers) > 1 else ''} {shown}{f' and {rest} more' if rest > 0 else ''}"
