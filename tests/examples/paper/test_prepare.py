"""Rows of public data sets: what the service accepts of them, what is left out, and how their answers are graded."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.paper import __main__ as command
from examples.paper import prepare
from examples.paper.graders import GRADERS
from examples.paper.mathematics import BOXED_INSTRUCTION, GSM8K_INSTRUCTION
from service.files.dataset import MAX_LINE_BYTES
from service.graders.schemas import parse_grader
from service.jobs.check import check
from tests.examples.paper import made
from tests.workers.graders import jails
from workers.graders import build
from workers.graders.grading import GraderSample

pytest.importorskip("pyarrow", reason="the extra 'paper' is not installed")

Row = dict[str, Any]
Prepared = Callable[..., dict[str, Any]]


@pytest.fixture
def prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Prepared:
    """``prepared("gsm8k", "--train", path)`` runs the command and returns what it says."""

    def run(data: str, *arguments: str | Path) -> dict[str, Any]:
        command.main(["prepare", data, str(tmp_path), *map(str, arguments)])
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    return run


def rows_of(folder: Path, name: str) -> list[Row]:
    return [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text().splitlines()]


def accepted(folder: Path, train: str, valid: str, grader: str) -> bool:
    """Whether the service takes these files for a job with this grader."""
    training, validation = (folder / "data" / f"{name}.jsonl" for name in (train, valid))
    found = check(training, validation, parse_grader(GRADERS[grader], "grader"), method="reinforcement")
    assert found.errors == []
    return found.usable


def rewards(grader: str, rows: list[Row], answers: list[str], jailed: bool = False) -> list[float | None]:
    settings = jails.settings(jails.first_tier()) if jailed else None
    samples = [GraderSample(row, answer) for row, answer in zip(rows, answers, strict=True)]
    grades = build(parse_grader(GRADERS[grader], "grader"), settings).grade(samples)
    assert [grade.error for grade in grades] == [None] * len(rows)
    return [grade.reward for grade in grades]


def question(row: Row) -> str:
    content: str = row["messages"][-1]["content"]
    return content


def test_gsm8k_is_read_from_parquet_and_json_lines(prepared: Prepared, tmp_path: Path) -> None:
    train = made.write_parquet(tmp_path / "train-00000-of-00001.parquet", made.GSM8K)
    valid = made.write_jsonl(tmp_path / "test.jsonl", made.GSM8K[:2])
    told = prepared("gsm8k", "--train", train, "--valid", valid)
    assert told["gsm8k-train"] == {"rows": 4, "left_out": {"the answer does not end with #### and a number": 2}}
    assert told["gsm8k-valid"] == {"rows": 2, "left_out": {}}
    rows = rows_of(tmp_path, "gsm8k-train")
    assert [row["answer"] for row in rows] == ["1234", "-5", "2.5", "4"]
    assert all(question(row).endswith(GSM8K_INSTRUCTION) for row in rows)
    assert accepted(tmp_path, "gsm8k-train", "gsm8k-valid", "gsm8k")


def test_gsm8k_as_verl_has_it_is_read_as_well(prepared: Prepared, tmp_path: Path) -> None:
    rows = [made.chat("openai/gsm8k", made.asked(f"1 + 1? {GSM8K_INSTRUCTION}"), "1,002", "math", index=0)]
    path = made.write_parquet(tmp_path / "train.parquet", rows)
    prepared("gsm8k", "--train", path, "--valid", path)
    (row,) = rows_of(tmp_path, "gsm8k-train")
    assert (question(row), row["answer"]) == (f"1 + 1? {GSM8K_INSTRUCTION}", "1002")


def test_gsm8ks_own_solutions_earn_the_reward_and_others_do_not(prepared: Prepared, tmp_path: Path) -> None:
    path = made.write_jsonl(tmp_path / "train.jsonl", made.GSM8K)
    prepared("gsm8k", "--train", path, "--valid", path)
    rows = rows_of(tmp_path, "gsm8k-train")
    # As verl's, the grader reads no dollar before the number.
    solutions = [source["answer"].replace("#### $", "#### ") for source in made.GSM8K[:4]]
    assert rewards("gsm8k", rows, solutions, jailed=True) == [1.0] * 4
    # Without the hashes, with another number, and with another one behind it.
    wrong = ["It is 1,234.", "#### 5", "#### 2.5 or rather #### 25", "####4"]
    assert rewards("gsm8k", rows, wrong, jailed=True) == [0.0] * 4


def test_dapos_repetitions_are_left_out_and_questions_held_out_are_not_learned(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "HELD_OUT", 2)
    told = prepared("dapo", "--train", made.write_parquet(tmp_path / "dapo-math-17k.parquet", made.DAPO))
    left_out = {"it repeats an earlier row": 1, "the answer is empty": 1, "there is no ground truth": 1}
    assert told["dapo-train"]["left_out"] == left_out
    train, valid = rows_of(tmp_path, "dapo-train"), rows_of(tmp_path, "dapo-valid")
    # One question is there under two indexes, and both are on the same side.
    assert len(train) + len(valid) == 5
    assert len(valid) in (2, 3)
    assert not {question(row) for row in train} & {question(row) for row in valid}
    texts = [question(row) for row in train + valid]
    assert all(text.endswith(BOXED_INSTRUCTION) and "Answer:" not in text for text in texts)
    assert f"Find $1 + 1$.\n\n{BOXED_INSTRUCTION}" in texts
    assert accepted(tmp_path, "dapo-train", "dapo-valid", "math")


def test_prompts_that_ask_for_a_box_stay_as_they_are(prepared: Prepared, tmp_path: Path) -> None:
    prompt = made.asked("Find $1 + 1$.", made.SYSTEM)
    rows = [made.chat("math_dapo", prompt, "2", "math", index="a")]
    path = made.write_parquet(tmp_path / "aligned.parquet", rows)
    prepared("dapo", "--train", path, "--valid", path)
    (row,) = rows_of(tmp_path, "dapo-train")
    assert row["messages"] == prompt


def test_mathematics_earns_the_reward_for_its_own_answer_alone(prepared: Prepared, tmp_path: Path) -> None:
    dapo = made.write_parquet(tmp_path / "dapo.parquet", made.DAPO)
    prepared("dapo", "--train", dapo, "--valid", dapo)
    eurus = made.write_parquet(tmp_path / "eurus.parquet", made.EURUS_MATH + made.CODE)
    prepared("eurus", "--train", eurus, "--valid", eurus)
    rows = rows_of(tmp_path, "dapo-train") + rows_of(tmp_path, "eurus-math-train")
    right = [f"Let us see. So it is \\boxed{{{row['answer']}}}." for row in rows]
    assert rewards("math", rows, right) == [1.0] * len(rows)
    assert rewards("math", rows, ["It is \\boxed{17}."] * len(rows)) == [0.0] * len(rows)
    assert rewards("math", rows, ["I do not know."] * len(rows)) == [0.0] * len(rows)


def test_eurus_is_parted_into_mathematics_and_code(prepared: Prepared, tmp_path: Path) -> None:
    train = made.write_parquet(tmp_path / "train.parquet", made.EURUS_MATH + made.CODE + made.UGLY_CODE)
    valid = made.write_parquet(tmp_path / "validation.parquet", made.EURUS_MATH[:1] + made.CODE[:1])
    told = prepared("eurus", "--train", train, "--valid", valid)
    assert told["eurus-math-train"] == {"rows": 3, "left_out": {}}
    assert told["eurus-code-train"] == {
        "rows": len(made.CODE),
        "left_out": {
            "there are no tests": 1,
            "there are not as many outputs as inputs": 1,
            "the ground truth is no JSON of inputs and outputs": 2,
            "the function's name is none": 1,
            "the arguments of a call are no JSON": 1,
            "not even one test fits into a line": 1,
            "there is no ground truth": 1,
        },
    }
    rows = rows_of(tmp_path, "eurus-code-train")
    assert [message["role"] for message in rows[0]["messages"]] == ["system", "user"]
    assert {question(row).split()[0]: len(row["tests"]) for row in rows} == {
        "Add": 2,
        "Print": 2,
        "Find": 2,
        "Reverse": 2,
        "Shout": 1,
        "Double": 10,
        "How": 2,
    }
    lines = (tmp_path / "data" / "eurus-code-train.jsonl").read_bytes().splitlines()
    assert max(map(len, lines)) < MAX_LINE_BYTES
    assert accepted(tmp_path, "eurus-code-train", "eurus-code-valid", "code")
    assert accepted(tmp_path, "eurus-math-train", "eurus-math-valid", "math")


def test_programs_are_paid_by_the_tests_that_they_pass(prepared: Prepared, tmp_path: Path) -> None:
    path = made.write_jsonl(tmp_path / "train.jsonl", made.EURUS_MATH + made.CODE)
    prepared("eurus", "--train", path, "--valid", path)
    rows = rows_of(tmp_path, "eurus-code-train")
    words = [question(row).split()[0] for row in rows]
    right = [f"I think so.\n```python\n{made.RIGHT[word]}\n```\n" for word in words]
    assert rewards("code", rows, right, jailed=True) == [1.0] * len(rows)
    wrong = [f"```python\n{made.WRONG[word]}\n```" for word in words]
    assert rewards("code", rows, wrong, jailed=True) == [made.PASSED_BY_WRONG.get(word, 0.0) for word in words]
    assert rewards("code", rows, ["I cannot."] * len(rows), jailed=True) == [0.0] * len(rows)


def test_test_sets_are_read_from_files_of_one_and_of_several(prepared: Prepared, tmp_path: Path) -> None:
    together = [
        made.chat(source, made.asked("Find $1 + 1$.", made.SYSTEM), "2", "math", index=number)
        for number, source in enumerate(["aime25"] * 32 + ["minerva"])
    ]
    alone = {
        "math500": made.write_jsonl(tmp_path / "test.jsonl", [made.MATH500]),
        "amc": made.write_parquet(tmp_path / "amc.parquet", [made.AMC]),
        "aime24": made.write_parquet(tmp_path / "aime.parquet", [made.AIME2024]),
        "omni-math": made.write_jsonl(tmp_path / "omni.jsonl", [made.OMNI, made.BOXED_ONLY, made.NO_BOX]),
        "OlympiadBench": made.write_jsonl(tmp_path / "oe.jsonl", [made.OLYMPIAD, made.NEVER_CLOSED, made.NO_QUESTION]),
    }
    named = [f"{name}={path}" for name, path in alone.items()]
    told = prepared("math", "--sets", made.write_parquet(tmp_path / "others.parquet", together), *named)
    assert {name: each["rows"] for name, each in told.items()} == {
        "aime2025": 1,
        "minerva": 1,
        "math500": 1,
        "amc": 1,
        "aime2024": 1,
        "omni-math": 2,
        "olympiadbench": 1,
    }
    assert told["aime2025"]["left_out"] == {"it repeats an earlier row": 31}
    assert told["omni-math"]["left_out"] == {"there is no answer, and no box in the solution": 1}
    assert told["olympiadbench"]["left_out"] == {
        "there is no answer, and no box in the solution": 1,
        "there is no question": 1,
    }
    answers = [row["answer"] for name in told for row in rows_of(tmp_path, name)]
    assert answers == ["2", "2", "32", "95", "204", "$\\frac{1}{3}$", "\\frac{a}{b}", "2, -3"]
    for name in told:
        assert accepted(tmp_path, name, name, "math")


def test_the_units_and_orders_of_test_sets_are_no_obstacle(prepared: Prepared, tmp_path: Path) -> None:
    sets: dict[str, list[made.Source]] = {
        "minerva": [made.MINERVA],
        "olympiadbench": [made.OLYMPIAD],
        "omnimath": [made.OMNI],
    }
    named = [f"{name}={made.write_jsonl(tmp_path / f'{name}.jsonl', rows)}" for name, rows in sets.items()]
    listed = tmp_path / "more.json"
    listed.write_text(json.dumps([made.BOXED_ONLY]))
    prepared("math", "--sets", *named, f"omni-math={listed}")
    rows = [row for name in ("minerva", "olympiadbench", "omni-math") for row in rows_of(tmp_path, name)]
    assert rewards("math", rows, ["\\boxed{1500}", "\\boxed{-3, 2}", "\\boxed{1/3}", "\\boxed{a/b}"]) == [1.0] * 4
    assert rewards("math", rows, ["\\boxed{1.5}", "\\boxed{2}", "\\boxed{3}", "\\boxed{b/a}"]) == [0.0] * 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gsm8k", "--train", "train.csv", "--valid", "train.csv"], r"neither \.parquet nor \.jsonl"),
        (["gsm8k", "--train", "nowhere.jsonl", "--valid", "nowhere.jsonl"], "nowhere.jsonl"),
        (["gsm8k", "--train", "train.jsonl"], "--valid"),
        (["dapo", "--train", "list.jsonl"], r"Row 1 of .*list\.jsonl is no object"),
        (["eurus", "--train", "train.jsonl", "--valid", "train.jsonl"], r"no rows for eurus-math-train"),
        (["math"], "--sets"),
        (["math", "--sets", "gpqa=train.jsonl"], "'gpqa' is none of the sets math500, amc"),
    ],
)
def test_what_cannot_be_prepared_is_told(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made.write_jsonl(tmp_path / "train.jsonl", made.GSM8K)
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(SystemExit, match="1"):
        command.main(["prepare", arguments[0], "folder", *arguments[1:]])
    error = capsys.readouterr().err
    assert re.search(told, error), error
    assert not list(tmp_path.glob("folder/data/*"))
