"""Training files: every mistake is found, at its line, in bounded memory."""

import gzip
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.files import dataset
from service.files.dataset import DatasetReport, Problem
from service.graders.schemas import Grader, parse_grader
from service.jobs.methods.supervised import Supervised

USER = {"role": "user", "content": "12+34="}
ROW = {"messages": [USER], "answer": "46"}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def grader(reference: str = "{{item.answer}}") -> Grader:
    return parse_grader(
        {
            "type": "string_check",
            "name": "g",
            "input": "{{sample.output_text}}",
            "reference": reference,
            "operation": "eq",
        },
        "grader",
    )


def write(folder: Path, *lines: Any) -> Path:
    """A file of one line for each argument: bytes as they are, anything else as JSON."""
    path = folder / "rows.jsonl"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def reasons(report: DatasetReport) -> list[tuple[int | None, str]]:
    return [(problem.line, problem.reason) for problem in report.problems]


def conversation(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(messages), **fields}


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        conversation({"role": "system", "content": "s"}, {"role": "developer", "content": "d"}, USER),
        conversation({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
        conversation(USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "46"}, USER),
        conversation(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, USER),
        conversation(USER, tools=[TOOL]),
        conversation(USER, tools=None),
        conversation(USER, {"role": "assistant", "content": "46"}),
        conversation(USER, **{"any field": {"nested": [1, 2.5, None, True]}}),
        conversation({"role": "user", "content": "emoji \U0001f600", "name": "ann"}),
    ],
)
def test_accepts(tmp_path: Path, row: dict[str, Any]) -> None:
    report = dataset.check(write(tmp_path, row))
    assert (report.rows, report.problems) == (1, [])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"messages": [}', "not valid JSON: Expecting value at character 15"),
        (b"{", "not valid JSON: .*each row is one object on one line"),
        (b"[", "each row is one object on one line"),
        (b"[1]", "a row must be an object, not a list"),
        (b'"text"', "a row must be an object, not a string"),
        (b'{"messages": [], "x": NaN}', "NaN is not a JSON number"),
        (b'{"messages": [], "x": 1e999}', "1e999 is too large"),
        (b'{"a": "\xe9"}', "not UTF-8: byte 0xe9 at position 8"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
        (b"[" * 100_000, "nested more than 200 levels deep"),
        ({"answer": "46"}, "'messages' is missing$"),
        ({"prompt": "a", "completion": "b"}, "'messages' is missing; rows of 'prompt' and 'completion'"),
        (
            {"input": {"messages": [USER]}, "preferred_output": [], "non_preferred_output": []},
            r"'messages' is missing; a row of 'input', 'preferred_output' .* is for preference fine-tuning \(DPO\)",
        ),
        (
            {"custom_id": "a", "method": "POST", "body": {"messages": []}},
            "'messages' is missing; .* request of a batch",
        ),
        ({"conversations": [{"from": "human", "value": "a"}]}, "'from' and 'value' must be rewritten as messages"),
        ({"messages": "hello"}, "'messages' must be a list, not a string"),
        ({"messages": []}, "'messages' is empty"),
        (conversation("hello"), r"messages\[0\] must be an object, not a string"),
        (conversation({"content": "a"}), r"messages\[0\].role must be one of system, developer, .*, and is missing"),
        (conversation({"role": "bot", "content": "a"}), r"messages\[0\].role must be one of .*, not 'bot'"),
        (conversation({"role": ["user"], "content": "a"}), "not a list"),
        (conversation({"role": "user"}), r"messages\[0\].content is missing"),
        (conversation({"role": "user", "content": ""}), r"messages\[0\].content is empty"),
        (conversation({"role": "user", "content": []}), r"messages\[0\].content is empty"),
        (conversation({"role": "user", "content": 5}), "must be a string or a list of text blocks, not a number"),
        (conversation({"role": "user", "content": ["a"]}), r"content\[0\] must be an object, not a string"),
        (conversation({"role": "user", "content": [{"text": "a"}]}), r"content\[0\] has type null"),
        (
            conversation({"role": "user", "content": [{"type": "text", "text": ""}]}),
            r"content\[0\].text must be a string",
        ),
        (
            conversation({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}),
            r"content\[0\] has type 'image_url'; only 'text' is supported",
        ),
        (conversation({"role": "user", "content": [{"type": "input_audio"}]}), "has type 'input_audio'"),
        (conversation({"role": "user", "content": [{"type": "file"}]}), "has type 'file'"),
        (conversation({"role": "assistant", "content": None}), r"messages\[0\].content is empty"),
        (conversation({"role": "assistant", "content": None, "tool_calls": []}), r"messages\[0\].content is empty"),
        (conversation({"role": "assistant", "tool_calls": "add"}), "tool_calls must be a list, not a string"),
        (conversation({"role": "assistant", "tool_calls": [{"name": "add"}]}), r"tool_calls\[0\] must look like"),
        (conversation(USER | {"tool_calls": [CALL]}), "tool_calls is for the role assistant only"),
        (conversation(USER, tools={}), "'tools' must be a list, not an object"),
        (conversation(USER, tools=[1]), r"tools\[0\] must look like"),
    ],
)
def test_names_what_is_wrong_with_a_line(tmp_path: Path, line: Any, says: str) -> None:
    report = dataset.check(write(tmp_path, ROW, line, ROW))
    assert [problem.line for problem in report.problems] == [2]
    assert re.search(says, report.problems[0].reason), report.problems[0].reason


def test_all_mistakes_of_a_row_are_reported(tmp_path: Path) -> None:
    row = conversation({"role": "bot"}, {"role": "user", "content": ""}, tools=1)
    report = dataset.check(write(tmp_path, row))
    assert (report.invalid_lines, report.problem_count) == (1, 4)
    assert {reason.split(" ")[0] for _, reason in reasons(report)} == {
        "messages[0].role",
        "messages[0].content",
        "messages[1].content",
        "'tools'",
    }


def test_all_bad_lines_are_reported_at_once(tmp_path: Path) -> None:
    report = dataset.check(write(tmp_path, b"{", ROW, b"", {"messages": []}, ROW))
    assert [problem.line for problem in report.problems] == [1, 3, 4]
    assert (report.rows, report.invalid_lines) == (5, 3)


def test_blank_lines_in_the_middle_are_reported(tmp_path: Path) -> None:
    report = dataset.check(write(tmp_path, b"", ROW, b"  ", b"\t\r", ROW))
    assert reasons(report) == [(1, "empty line"), (3, "empty line"), (4, "empty line")]


def test_blank_lines_at_the_end_are_not(tmp_path: Path) -> None:
    report = dataset.check(write(tmp_path, ROW, ROW, b"", b" ", b""))
    assert (report.rows, report.problems) == (2, [])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_line_endings(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    line = json.dumps(ROW).encode()
    path.write_bytes(line + (end or b"\n") + line + end)
    assert dataset.check(path) == DatasetReport(rows=2)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_rows(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    report = dataset.check(path)
    assert report.problems == [Problem(None, "the file has no rows")]
    assert dataset.summarise(report) == "the file has no rows"


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf" + json.dumps(ROW).encode(), ROW)
    assert reasons(dataset.check(path)) == []
    assert [row for _, row in dataset.rows(path)] == [ROW, ROW]


def test_a_byte_order_mark_elsewhere_is_a_problem(tmp_path: Path) -> None:
    (problem,) = dataset.check(write(tmp_path, ROW, b"\xef\xbb\xbf" + json.dumps(ROW).encode())).problems
    assert problem.line == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps(ROW).encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + json.dumps(ROW).encode("utf-16-be"), "UTF-16"),
        (gzip.compress(json.dumps(ROW).encode()), "gzip"),
        (b"PK\x03\x04rest", "ZIP"),
    ],
    ids=["utf-16-le", "utf-16-be", "gzip", "zip"],
)
def test_files_of_another_kind_are_named_once(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    (problem,) = dataset.check(path).problems
    assert problem.line is None
    assert says in problem.reason


def padded(length: int) -> bytes:
    """A valid row of exactly ``length`` bytes."""
    empty = json.dumps(conversation(USER, pad="")).encode()
    return empty[:-2] + b"x" * (length - len(empty)) + empty[-2:]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_the_longest_line_allowed(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(padded(dataset.MAX_LINE_BYTES) + end)
    assert dataset.check(path) == DatasetReport(rows=1)


@pytest.mark.parametrize("excess", [1, 2, 3, 2 * dataset.MAX_LINE_BYTES])
def test_a_longer_line_is_skipped_and_the_rest_is_read(tmp_path: Path, excess: int) -> None:
    report = dataset.check(write(tmp_path, ROW, padded(dataset.MAX_LINE_BYTES + excess), b"{}", ROW))
    assert report.rows == 4
    assert reasons(report) == [(2, "longer than 1,048,576 bytes"), (3, "'messages' is missing")]


def test_memory_does_not_grow_with_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x" * (64 << 20))
    tracemalloc.start()
    dataset.check(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_problems_are_capped_and_counted(tmp_path: Path) -> None:
    report = dataset.check(write(tmp_path, *[{"messages": []}] * 150))
    assert len(report.problems) == dataset.MAX_PROBLEMS
    assert (report.problem_count, report.invalid_lines, report.gave_up) == (150, 150, False)


def test_problems_of_one_line_are_capped(tmp_path: Path) -> None:
    report = dataset.check(write(tmp_path, {"messages": [1] * 100_000}))
    assert report.problem_count == dataset.MAX_PROBLEMS


@pytest.mark.parametrize("line", [b"{}", b""])
def test_a_hopeless_file_is_given_up(tmp_path: Path, line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "MAX_INVALID_LINES", 10_000)
    path = tmp_path / "rows.jsonl"
    path.write_bytes((line + b"\n") * (dataset.MAX_INVALID_LINES + 500))
    report = dataset.check(path)
    assert report.gave_up
    assert report.rows < dataset.MAX_INVALID_LINES + 500
    assert "of the first " in dataset.summarise(report)


ANSWER = {"role": "assistant", "content": "46"}


@pytest.mark.parametrize(
    "row",
    [
        conversation(USER, ANSWER),
        conversation(USER, {**ANSWER, "weight": 1}, USER, {**ANSWER, "weight": 0}),
        conversation(USER, {"role": "assistant", "tool_calls": [CALL]}, tools=[TOOL]),
    ],
)
def test_rows_to_learn_from(tmp_path: Path, row: dict[str, Any]) -> None:
    assert dataset.check_for_supervised(write(tmp_path, row)).problems == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ROW, "the last message has the role user and must have the role assistant: it is what"),
        (conversation(USER, {**ANSWER, "weight": 0}), "every assistant message has weight 0, so that"),
        (conversation(USER, {**ANSWER, "weight": 0.5}), "messages[1].weight must be 0 or 1"),
        (conversation(USER, {**ANSWER, "weight": True}), "messages[1].weight must be 0 or 1"),
        (conversation({**USER, "weight": 1}, ANSWER), "messages[0].weight is for the role assistant only"),
    ],
)
def test_rows_that_teach_nothing_or_have_bad_weights(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    report = dataset.check_for_supervised(write(tmp_path, conversation(USER, ANSWER), row, row))
    assert [(line, why.startswith(reason)) for line, why in reasons(report)] == [(2, True), (3, True)]


def test_what_the_rows_are_for_is_seen_at_the_first_that_can_be_read(tmp_path: Path) -> None:
    first = dataset.first_row(write(tmp_path, b"{", conversation(USER, ANSWER), ROW))
    assert first is not None
    assert Supervised.fits(first)
    first = dataset.first_row(write(tmp_path, ROW, conversation(USER, ANSWER)))
    assert first is not None
    assert not Supervised.fits(first)


def test_reinforcement_wants_the_user_to_speak_last(tmp_path: Path) -> None:
    answered = conversation(USER, {"role": "assistant", "content": "46"}, answer="46")
    report = dataset.check_for_reinforcement(write(tmp_path, ROW, answered), grader())
    ((line, reason),) = reasons(report)
    assert line == 2
    assert reason.startswith("the last message has the role assistant and must have the role user")


def test_reinforcement_wants_every_field_the_grader_reads(tmp_path: Path) -> None:
    path = write(tmp_path, ROW, conversation(USER, solution="46"), ROW | {"answer": None}, conversation(USER))
    report = dataset.check_for_reinforcement(path, grader())
    assert reasons(report) == [
        (2, "the grader reads {{item.answer}}, but item has no field 'answer' (it has: messages, solution)"),
        (4, "the grader reads {{item.answer}}, but item has no field 'answer' (it has: messages)"),
    ]


def test_reinforcement_lists_all_missing_fields_of_a_row(tmp_path: Path) -> None:
    both = {
        "type": "multi",
        "graders": {"a": grader("{{item.a.b}}").model_dump(), "c": grader("{{item.c}} {{item.a.b}}").model_dump()},
        "calculate_output": "a + c",
    }
    report = dataset.check_for_reinforcement(write(tmp_path, ROW | {"a": [1]}), parse_grader(both, "grader"))
    assert [reason.split(",")[0] for _, reason in reasons(report)] == [
        "the grader reads {{item.a.b}}",
        "the grader reads {{item.c}}",
    ]


def test_a_grader_may_read_the_messages(tmp_path: Path) -> None:
    assert not dataset.check_for_reinforcement(write(tmp_path, ROW), grader("{{item.messages[0].content}}")).problems


def test_reinforcement_finds_other_mistakes_too(tmp_path: Path) -> None:
    report = dataset.check_for_reinforcement(write(tmp_path, b"{", {"messages": []}), grader())
    assert [line for line, _ in reasons(report)] == [1, 2, 2]


def test_rows_are_numbered_by_line(tmp_path: Path) -> None:
    assert list(dataset.rows(write(tmp_path, ROW, b"", USER))) == [(1, ROW), (3, USER)]


def test_rows_stop_at_a_line_that_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Line 2 of rows\.jsonl: not valid JSON: Expecting"):
        list(dataset.rows(write(tmp_path, ROW, b"{]")))


def test_summary_counts_and_quotes(tmp_path: Path) -> None:
    report = dataset.check(write(tmp_path, ROW, {"messages": []}, ROW, ROW, ROW, ROW, b"[]"))
    assert dataset.summarise(report) == (
        "2 of 7 lines are invalid: line 2: 'messages' is empty; line 7: a row must be an object, not a list"
    )


def test_summary_gathers_lines_with_the_same_problem(tmp_path: Path) -> None:
    bad: dict[str, Any] = {"messages": []}
    report = dataset.check(write(tmp_path, bad, bad, bad, ROW, bad))
    assert dataset.summarise(report) == "4 of 5 lines are invalid: lines 1-3, 5: 'messages' is empty"


def test_summary_counts_lines_beyond_ten_ranges(tmp_path: Path) -> None:
    report = dataset.check(write(tmp_path, *[{"messages": []}, ROW] * 15))
    assert dataset.summarise(report) == (
        "15 of 30 lines are invalid: lines 1, 3, 5, 7, 9, 11, 13, 15, 17, 19 and 5 more: 'messages' is empty"
    )


def test_summary_is_limited_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    report = dataset.check(write(tmp_path, *[conversation({"role": f"r{i}", "content": "a"}) for i in range(150)]))
    message = dataset.summarise(report, limit=500)
    assert len(message) < 600
    shown = message.count("messages[0].role")
    assert 0 < shown < 10
    assert message.startswith("150 of 150 lines are invalid: line 1: ")
    assert message.endswith(f"; and {150 - shown} more problems")


@pytest.mark.parametrize("same", [True, False])
def test_every_kind_of_problem_has_an_example(tmp_path: Path, same: bool) -> None:
    many = [conversation({"role": "r" if same else f"r{i}", "content": "a"}) for i in range(150)]
    report = dataset.check(write(tmp_path, *many, {"messages": []}, ROW, {"messages": []}))
    assert (report.problem_count, report.problems[-1]) == (152, Problem(151, "'messages' is empty"))
    message = dataset.summarise(report, limit=500)
    assert "line 151: 'messages' is empty" in message
    assert message.endswith("more problems")


@pytest.mark.parametrize("line", [b'{"messages": [{}]}', b"{", b""])
def test_the_last_of_very_many_bad_lines_is_counted_and_named(tmp_path: Path, line: bytes) -> None:
    """More lines than the rows of any job."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes((line + b"\n") * 60_000 + b'{"messages": []}\n')
    report = dataset.check(path)
    assert (report.invalid_lines, report.rows, report.gave_up) == (60_001, 60_001, False)
    message = dataset.summarise(report)
    assert message.startswith("60001 of 60001 lines are invalid: ")
    assert "line 60001: 'messages' is empty" in message


lines = st.lists(
    st.binary(max_size=30) | st.sampled_from([json.dumps(ROW).encode(), b"{}", b'{"messages": [{}]}', b""]), max_size=6
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines)
def test_any_bytes_are_a_dataset_or_have_a_problem(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = dataset.check_for_reinforcement(path, grader())
    if not report.problems:
        assert [row for _, row in dataset.rows(path)] == [ROW] * report.rows
    else:
        assert dataset.summarise(report)
