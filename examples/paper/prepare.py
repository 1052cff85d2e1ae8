"""Files of rows for the jobs, made of public data sets. What is left out is counted by its reason, and nothing else is.

Every row of mathematics is tried: its own answer in a box has to earn the reward, or nobody could.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from examples.paper.graders import GRADERS
from examples.paper.mathematics import Row, UnusableError, chat, gsm8k, problem
from examples.paper.programs import code
from examples.paper.runs import DATA
from examples.paper.sources import Source, rows_of
from service.graders.schemas import parse_grader
from workers.graders import build
from workers.graders.grading import GraderSample

HELD_OUT = 1024
"""Rows of DAPO-Math that the authors held out. Which ones is known from their files alone."""
TRIED_AT_A_TIME = 256
SETS = {
    "math500": ("math500", "math"),
    "amc": ("amc", "amc23"),
    "aime2024": ("aime2024", "aime24", "aime"),
    "aime2025": ("aime2025", "aime25"),
    "omni-math": ("omnimath",),
    "olympiadbench": ("olympiadbench", "olympiad"),
    "minerva": ("minerva", "minervamath"),
}
"""The sets of Math-Eval, each with what its ``data_source`` may be called, but for case and punctuation."""

Report = dict[str, Any]
LeftOut = Counter[str]
"""How many rows are left out, by reason."""


def prepare_gsm8k(folder: Path, train: Iterable[Path], valid: Iterable[Path]) -> Report:
    report: Report = {}
    for part, paths in {"train": train, "valid": valid}.items():
        left_out: LeftOut = Counter()
        report |= write(folder, f"gsm8k-{part}", kept(rows_of(paths), gsm8k, left_out), left_out)
    return report


def prepare_dapo(folder: Path, train: Iterable[Path], valid: Iterable[Path] = ()) -> Report:
    """Without files for validation, ``HELD_OUT`` of the questions are kept for it, always the same."""
    left_out: dict[str, LeftOut] = {"train": Counter(), "valid": Counter()}
    learned = list(tried(kept(rows_of(train), chat, left_out["train"], by_index), left_out["train"]))
    measured = list(tried(kept(rows_of(valid), chat, left_out["valid"]), left_out["valid"]))
    if not measured:
        measured, learned = held_out(learned, HELD_OUT)
    return write(folder, "dapo-train", learned, left_out["train"]) | write(
        folder, "dapo-valid", measured, left_out["valid"]
    )


def prepare_eurus(folder: Path, train: Sequence[Path], valid: Sequence[Path]) -> Report:
    """Mathematics and code are told apart by ``ability``."""
    report: Report = {}
    for part, paths in {"train": train, "valid": valid}.items():
        left_out: LeftOut = Counter()
        problems = tried(kept(_of_ability("math", paths), chat, left_out), left_out)
        report |= write(folder, f"eurus-math-{part}", problems, left_out)
        left_out = Counter()
        report |= write(folder, f"eurus-code-{part}", kept(_of_ability("code", paths), code, left_out), left_out)
    return report


def prepare_math(folder: Path, together: Iterable[Path], alone: Mapping[str, Iterable[Path]]) -> Report:
    """The sets of Math-Eval: files that hold several, by their ``data_source``, and files of one set each.

    Raises ``ValueError`` for a set that is none of them.
    """
    sets: dict[str, list[Source]] = {}
    for source in rows_of(together):
        sets.setdefault(set_named(str(source.get("data_source"))), []).append(source)
    for name, paths in alone.items():
        sets.setdefault(set_named(name), []).extend(rows_of(paths))
    report: Report = {}
    for name, sources in sets.items():
        left_out: LeftOut = Counter()
        report |= write(folder, name, tried(kept(sources, _test_row, left_out), left_out), left_out)
    return report


def set_named(name: str) -> str:
    """The set that is called ``name`` somewhere. Raises ``ValueError``."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for known, others in SETS.items():
        if plain in others:
            return known
    raise ValueError(f"'{name}' is none of the sets {', '.join(SETS)}.")


def by_content(source: Source, row: Row) -> Hashable:
    return _digest(row)


def by_index(source: Source, row: Row) -> Hashable:
    """DAPO-Math has each row a hundred times, and some questions under two indexes, which the authors kept."""
    index = (source.get("extra_info") or {}).get("index")
    return _digest(row) if index is None else str(index)


def kept(
    sources: Iterable[Source],
    convert: Callable[[Source], Row],
    left_out: LeftOut,
    same: Callable[[Source, Row], Hashable] = by_content,
) -> Iterator[Row]:
    """What ``convert`` makes of the sources, each row once."""
    seen: set[Hashable] = set()
    for source in sources:
        try:
            row = convert(source)
        except UnusableError as error:
            left_out[str(error)] += 1
            continue
        key = same(source, row)
        if key in seen:
            left_out["it repeats an earlier row"] += 1
            continue
        seen.add(key)
        yield row


def tried(rows: Iterable[Row], left_out: LeftOut) -> Iterator[Row]:
    """The rows whose own answer the grader takes."""
    grader, remaining = build(parse_grader(GRADERS["math"], "grader")), iter(rows)
    while batch := list(islice(remaining, TRIED_AT_A_TIME)):
        grades = grader.grade([GraderSample(row, f"\\boxed{{{row['answer']}}}") for row in batch])
        for row, grade in zip(batch, grades, strict=True):
            if grade.reward == 1:
                yield row
            else:
                left_out["the grader does not take its own answer"] += 1


def held_out(rows: list[Row], count: int) -> tuple[list[Row], list[Row]]:
    """``count`` rows and the others. Rows of one question stay together, so that there may be a few more."""
    digests = [_digest(row["messages"]) for row in rows]
    last = sorted(digests)[:count][-1:]
    chosen = [bool(last) and digest <= last[0] for digest in digests]
    return (
        [row for row, taken in zip(rows, chosen, strict=True) if taken],
        [row for row, taken in zip(rows, chosen, strict=True) if not taken],
    )


def write(folder: Path, name: str, rows: Iterable[Row], left_out: LeftOut) -> Report:
    """A file of ``rows``, which appears when it is complete, and what there is to tell of it.

    Raises ``ValueError`` where there are no rows.
    """
    path = folder / DATA / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, count = path.with_suffix(".partial"), 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
                count += 1
        if count == 0:
            raise ValueError(f"There are no rows for {path.name}. Left out: {dict(left_out) or 'none'}.")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return {name: {"rows": count, "left_out": dict(left_out)}}


def _of_ability(ability: str, paths: Iterable[Path]) -> Iterator[Source]:
    return (source for source in rows_of(paths) if source.get("ability") == ability)


def _test_row(source: Source) -> Row:
    return chat(source) if "prompt" in source else problem(source)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
