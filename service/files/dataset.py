"""Training data: JSON Lines files of conversations, checked row by row with all mistakes reported at once.

A row is a JSON object with ``messages`` (a conversation of texts), perhaps ``tools``, and any other fields, which
graders read as ``{{item.FIELD}}``. For reinforcement the conversation ends with the user, whom the model answers; for
supervised fine-tuning with the assistant, whose messages the model learns but for those of ``weight`` 0. Files are
streamed, so memory does not grow with their size. Nothing here needs a database or a server: the same check runs
offline.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from service.contracts import strict_json
from service.graders.schemas import Grader
from service.graders.template import MissingVariableError, Reference, Template

MAX_LINE_BYTES = 1 << 20
MAX_PROBLEMS = 100
"""Problems listed in a report; the rest are counted."""
MAX_INVALID_LINES = 2_000_000
"""After so many, four times the rows that a job may have, a file is given up: it is no JSON Lines at all."""

ROLES = ("system", "developer", "user", "assistant", "tool")
_OTHER_ROWS = (
    (
        {"preferred_output"},
        "a row of 'input', 'preferred_output' and 'non_preferred_output' is for preference fine-tuning (DPO), which is "
        "not served: give the preferred answer as the assistant's message, or let a grader prefer it",
    ),
    ({"custom_id", "body"}, "this is a request of a batch: a row is what its 'body' holds as 'messages'"),
    ({"conversations"}, "turns of 'from' and 'value' must be rewritten as messages of 'role' and 'content'"),
    ({"prompt"}, "rows of 'prompt' and 'completion' must be rewritten as messages"),
)
"""Rows for something else, by the keys that tell them, and what to do about them."""
_WHY_LAST = {
    "user": ", for the model to answer it; an expected answer belongs in a field beside 'messages'",
    "assistant": ": it is what the model learns in supervised fine-tuning, the method of a job that names none",
}
_BOM = b"\xef\xbb\xbf"
_NOT_JSON_LINES = {
    b"\xff\xfe": "the file is UTF-16; save it as UTF-8",
    b"\xfe\xff": "the file is UTF-16; save it as UTF-8",
    b"\x1f\x8b": "the file is compressed with gzip; upload the JSON Lines file itself",
    b"PK": "the file is a ZIP archive or an office document; upload a JSON Lines file",
}


@dataclass(frozen=True)
class Problem:
    """Why a line cannot be used. ``line`` counts from 1; None means the file as a whole."""

    line: int | None
    reason: str


@dataclass
class DatasetReport:
    """What a check found. ``rows`` counts the lines up to the last that is not blank.

    ``problems`` are the first ``MAX_PROBLEMS`` in the order of the file, and the first of each kind behind them, as
    many again at most; ``problem_count`` is how many there are, on ``invalid_lines`` different lines. ``gave_up``: the
    rest of the file was not read and is not counted.
    """

    rows: int = 0
    invalid_lines: int = 0
    problem_count: int = 0
    problems: list[Problem] = field(default_factory=list)
    gave_up: bool = False
    _kinds: set[str] = field(default_factory=set, repr=False, compare=False)

    def add(self, line: int | None, reasons: list[str]) -> None:
        self.invalid_lines += bool(reasons) and line is not None
        self.problem_count += len(reasons)
        for reason in reasons:
            kind, number = _kind(reason), len(self.problems)
            if number < MAX_PROBLEMS or (kind not in self._kinds and number < 2 * MAX_PROBLEMS):
                self.problems.append(Problem(line, _shortened(reason, 300)))
                self._kinds.add(kind)


def check(path: Path) -> DatasetReport:
    """Check the file at ``path`` as every fine-tuning file must be. Without ``problems`` it is valid."""
    return check_rows(path, lambda row: [])


def check_for_reinforcement(path: Path, grader: Grader | None = None, give_up_at: float | None = None) -> DatasetReport:
    """``check``, and: each conversation ends with the user, and each row has every field that ``grader`` reads.

    Raises ``TimeoutError`` at ``give_up_at``, a monotonic time.
    """
    templates = grader.templates() if grader else ()
    references = {each for text in templates for each in Template.parse(text).paths}
    needed = sorted((each for each in references if each.namespace == "item"), key=str)
    return check_rows(
        path, lambda row: [*_last_role_reasons(row, "user"), *_missing_field_reasons(row, needed)], give_up_at
    )


def check_for_supervised(path: Path, give_up_at: float | None = None) -> DatasetReport:
    """``check``, and: each conversation ends with the assistant, and has a message that is to be learned.

    Raises ``TimeoutError`` at ``give_up_at``, a monotonic time.
    """
    return check_rows(path, lambda row: [*_last_role_reasons(row, "assistant"), *_weight_reasons(row)], give_up_at)


def check_time(give_up_at: float | None) -> None:
    """Raises ``TimeoutError`` when it is past ``give_up_at``, a monotonic time."""
    if give_up_at is not None and time.monotonic() > give_up_at:
        raise TimeoutError


def first_row(path: Path) -> dict[str, Any] | None:
    """The first row that can be read."""
    with path.open("rb") as file:
        for _, line in _lines(file):
            try:
                return _parse(line)
            except _BadLineError:
                continue
    return None


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and row of each line that is not blank, of a file that ``check`` found valid.

    Raises ``ValueError``, naming the line, where a line is no JSON object after all; messages are not checked again.
    """
    with path.open("rb") as file:
        for number, line in _lines(file):
            if _is_blank(line):
                continue
            try:
                yield number, _parse(line)
            except _BadLineError as error:
                raise ValueError(f"Line {number} of {path.name}: {error}.") from None


def summarise(report: DatasetReport, limit: int = 2000) -> str:
    """The problems as one message of about ``limit`` characters at most; lines with the same problem share a clause.

    Where there is no room for all, each kind of problem has an example before any has another.
    """
    lines_by_reason: dict[str, list[int]] = {}
    for problem in report.problems:
        lines_by_reason.setdefault(problem.reason, []).extend([problem.line] if problem.line is not None else [])
    if len("; ".join(lines_by_reason)) > limit:
        firsts = {_kind(reason): reason for reason in reversed(lines_by_reason)}
        lines_by_reason = {reason: lines_by_reason[reason] for reason in [*reversed(firsts.values()), *lines_by_reason]}
    clauses = [f"{_ranges(lines)}: {reason}" if lines else reason for reason, lines in lines_by_reason.items()]
    fitting = next((n for n in range(len(clauses), 1, -1) if len("; ".join(clauses[:n])) <= limit), 1)
    shown = sum(max(len(lines), 1) for lines in list(lines_by_reason.values())[:fitting])
    more = [f"and {report.problem_count - shown} more problems"] if report.problem_count > shown else []
    read = f"the first {report.rows}" if report.gave_up else f"{report.rows}"
    head = f"{report.invalid_lines} of {read} lines are invalid: " if report.invalid_lines else ""
    return head + "; ".join(clauses[:fitting] + more)


def _kind(reason: str) -> str:
    """What problems have in common that differ in numbers and in what they quote."""
    return re.sub(r"'[^']*'|\d+", "", reason)


class _BadLineError(ValueError):
    """A line that is no JSON object, and why."""


def check_rows(
    path: Path, further: Callable[[dict[str, Any]], Iterable[str]], give_up_at: float | None = None
) -> DatasetReport:
    report = DatasetReport()
    with path.open("rb") as file:
        start = file.read(2)
        if start in _NOT_JSON_LINES:
            report.add(None, [_NOT_JSON_LINES[start]])
            return report
        file.seek(0)
        _check_lines(file, report, further, give_up_at)
    if report.rows == 0:
        report.add(None, ["the file has no rows"])
    return report


def _check_lines(
    file: BinaryIO,
    report: DatasetReport,
    further: Callable[[dict[str, Any]], Iterable[str]],
    give_up_at: float | None,
) -> None:
    for number, line in _lines(file):
        check_time(give_up_at)
        # Blank lines matter only when a row follows them: editors leave some at the end.
        if _is_blank(line) and number - report.rows <= MAX_INVALID_LINES:
            continue
        for blank in range(report.rows + 1, number):
            report.add(blank, ["empty line"])
        report.rows = number
        report.add(number, _line_reasons(line, further))
        if report.invalid_lines >= MAX_INVALID_LINES:
            report.gave_up = True
            return


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Number and content of each line; None for a line that is too long, which is skipped and not kept in memory."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + len(b"\r\n")):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) - line.endswith(b"\n") - line.endswith(b"\r\n") <= MAX_LINE_BYTES:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
        yield number, None


def _is_blank(line: bytes | None) -> bool:
    return line is not None and not line.strip()


def _parse(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise _BadLineError(f"longer than {MAX_LINE_BYTES:,} bytes")
    if _is_blank(line):
        raise _BadLineError("empty line")
    try:
        row = strict_json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _BadLineError(f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}") from None
    except strict_json.InvalidJSONError as error:
        hint = "; each row is one object on one line" if line.strip() in (b"{", b"[") else ""
        raise _BadLineError(f"not valid JSON: {error}{hint}") from None
    if not isinstance(row, dict):
        raise _BadLineError(f"a row must be an object, not {strict_json.kind(row)}")
    if b"\\u" in line and _has_lone_surrogate(row):
        raise _BadLineError("holds a \\u escape that is half of a surrogate pair, which is no character")
    return row


def _has_lone_surrogate(row: dict[str, Any]) -> bool:
    try:
        strict_json.dumps(row).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _line_reasons(line: bytes | None, further: Callable[[dict[str, Any]], Iterable[str]]) -> list[str]:
    try:
        row = _parse(line)
    except _BadLineError as error:
        return [str(error)]
    # One line may hold as many mistakes as bytes; nobody reads on after the first hundred.
    return list(islice(chain(further(row), _messages_reasons(row), _tools_reasons(row)), MAX_PROBLEMS))


def _messages_reasons(row: dict[str, Any]) -> Iterator[str]:
    if "messages" not in row:
        hint = next((text for names, text in _OTHER_ROWS if names <= row.keys()), None)
        yield "'messages' is missing" + (f"; {hint}" if hint else "")
    elif not isinstance(row["messages"], list):
        yield f"'messages' must be a list, not {strict_json.kind(row['messages'])}"
    elif not row["messages"]:
        yield "'messages' is empty"
    else:
        for index, message in enumerate(row["messages"]):
            yield from _message_reasons(message, f"messages[{index}]")


def _message_reasons(message: Any, where: str) -> Iterator[str]:
    if not isinstance(message, dict):
        yield f"{where} must be an object, not {strict_json.kind(message)}"
        return
    role = message.get("role")
    if role not in ROLES:
        found = f"not {_quoted(role)}" if "role" in message else "and is missing"
        yield f"{where}.role must be one of {', '.join(ROLES)}, {found}"
    calls = message.get("tool_calls")
    if calls is not None:
        yield from _tool_calls_reasons(calls, role, f"{where}.tool_calls")
    content = message.get("content")
    if content in (None, "", []):
        if not (role == "assistant" and calls):
            yield f"{where}.content is {'empty' if 'content' in message else 'missing'}"
    elif isinstance(content, list):
        for index, block in enumerate(content):
            yield from _block_reasons(block, f"{where}.content[{index}]")
    elif not isinstance(content, str):
        yield f"{where}.content must be a string or a list of text blocks, not {strict_json.kind(content)}"


def _block_reasons(block: Any, where: str) -> Iterator[str]:
    if not isinstance(block, dict):
        yield f"{where} must be an object, not {strict_json.kind(block)}"
    elif block.get("type") != "text":
        yield f"{where} has type {_quoted(block.get('type'))}; only 'text' is supported (no images, audio or files)"
    elif not isinstance(block.get("text"), str) or not block["text"]:
        yield f"{where}.text must be a string that is not empty"


def _tool_calls_reasons(calls: Any, role: Any, where: str) -> Iterator[str]:
    if role != "assistant":
        yield f"{where} is for the role assistant only"
    if not isinstance(calls, list):
        yield f"{where} must be a list, not {strict_json.kind(calls)}"
        return
    for index, call in enumerate(calls):
        yield from _function_reasons(call, f"{where}[{index}]")


def _tools_reasons(row: dict[str, Any]) -> Iterator[str]:
    tools = row.get("tools")
    if tools is None:
        return
    if not isinstance(tools, list):
        yield f"'tools' must be a list, not {strict_json.kind(tools)}"
        return
    for index, tool in enumerate(tools):
        yield from _function_reasons(tool, f"tools[{index}]")


def _function_reasons(value: Any, where: str) -> Iterator[str]:
    """A tool and a call of one share their outer shape: ``{"type": "function", "function": {"name": …}}``."""
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        yield f'{where} must look like {{"type": "function", "function": {{"name": …}}}}'


def last_role(row: dict[str, Any]) -> Any:
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return last.get("role") if isinstance(last, dict) else None


def _last_role_reasons(row: dict[str, Any], needed: str) -> Iterator[str]:
    role = last_role(row)
    if role in ROLES and role != needed:
        yield f"the last message has the role {role} and must have the role {needed}{_WHY_LAST[needed]}"


def _weight_reasons(row: dict[str, Any]) -> Iterator[str]:
    messages = row.get("messages")
    idle = True
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        if not isinstance(message, dict):
            continue
        weight, is_answer = message.get("weight"), message.get("role") == "assistant"
        idle &= not is_answer or weight == 0
        if weight is not None and not is_answer:
            yield f"messages[{index}].weight is for the role assistant only"
        elif isinstance(weight, bool) or weight not in (None, 0, 1):
            yield f"messages[{index}].weight must be 0 or 1"
    if idle and last_role(row) == "assistant":
        yield "every assistant message has weight 0, so that there is nothing to learn"


def _missing_field_reasons(row: dict[str, Any], needed: list[Reference]) -> Iterator[str]:
    for reference in needed:
        try:
            reference.resolve(row)
        except MissingVariableError as error:
            yield f"the grader reads {{{{{reference}}}}}, but {error.why}"


def _ranges(lines: list[int], most: int = 10) -> str:
    """``[2]`` as "line 2" and ``[2, 3, 4, 9]`` as "lines 2-4, 9"; of more than ``most`` ranges the rest are counted."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line == runs[-1][-1] + 1:
            runs[-1].append(line)
        else:
            runs.append([line])
    shown = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:most])
    rest = sum(len(run) for run in runs[most:])
    return f"line{'s' if len(lines) > 1 else ''} {shown}{f' and {rest} more' if rest else ''}"


def _quoted(value: Any) -> str:
    return f"'{_shortened(value, 40)}'" if isinstance(value, str) else strict_json.kind(value)


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
