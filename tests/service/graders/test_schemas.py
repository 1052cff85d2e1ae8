"""What users send as a grader, in all its shapes, and the errors for what cannot be one."""

from typing import Any

import pytest
from openai.types import graders as client
from pydantic import TypeAdapter

from service.graders.kinds.string_check import StringCheck
from service.graders.kinds.text_similarity import TextSimilarity
from service.graders.multi import Multi
from service.graders.schemas import Grader, GraderError, parse_grader

PATH = "method.reinforcement.grader"
EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
CLOSE = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "fuzzy_match",
}
PYTHON = {"type": "python", "name": "code", "source": "def grade(sample, item):\n    return 1.0\n"}
SCORE = {
    "type": "score_model",
    "name": "quality",
    "model": "judge",
    "input": [{"role": "user", "content": "Score {{sample.output_text}} against {{item.answer}}."}],
}
LABEL = SCORE | {"type": "label_model", "labels": ["good", "bad"], "passing_labels": ["good"]}


def multi(graders: Any, formula: Any = "exact", **fields: Any) -> dict[str, Any]:
    return {"type": "multi", "name": "both", "graders": graders, "calculate_output": formula, **fields}


def without(grader: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in grader.items() if key not in keys}


def test_endpoint_is_another_name_of_http() -> None:
    raw = {"type": "endpoint", "name": "own", "url": "https://scores.example.com"}
    assert parse_grader(raw, PATH) == parse_grader(raw | {"type": "http"}, PATH)


def test_string_check() -> None:
    assert parse_grader(EXACT, PATH) == StringCheck.model_validate(EXACT)


def test_text_similarity() -> None:
    assert parse_grader(CLOSE | {"pass_threshold": 0.8}, PATH) == TextSimilarity.model_validate(
        CLOSE | {"pass_threshold": 0.8}
    )


@pytest.mark.parametrize(
    "raw",
    [
        PYTHON,
        PYTHON | {"image_tag": "2025-05-08"},
        PYTHON | {"source": "from math import sqrt as grade"},
        PYTHON | {"source": "grade = lambda sample, item: 1"},
        SCORE,
        SCORE | {"range": [-1, 1], "pass_threshold": 0.5, "sampling_params": {"seed": 1, "temperature": 0.0}},
        SCORE
        | {"input": [{"role": "system", "type": "message", "content": ["a", {"type": "input_text", "text": "b"}]}]},
        LABEL,
        {"type": "math_verify", "reference": "{{item.answer}}"},
        {"type": "code_tests", "tests": "{{item.tests}}", "partial": True},
        {"type": "http", "url": "https://scores.example.com/v1?team=a"},
        *(CLOSE | {"evaluation_metric": f"rouge_{n}"} for n in (1, 2, 3, 4, 5, "l")),
        *(CLOSE | {"evaluation_metric": name} for name in ("bleu", "gleu", "meteor")),
    ],
)
def test_each_type_is_taken_alone_and_in_a_multi_grader_and_read_back(raw: dict[str, Any]) -> None:
    adapter: TypeAdapter[Grader] = TypeAdapter(Grader)
    for grader in (parse_grader(raw, PATH), parse_grader(multi({"x": raw}, "x"), PATH)):
        assert adapter.validate_json(grader.model_dump_json()) == grader


@pytest.mark.parametrize(
    ("raw", "type_"),
    [
        (PYTHON, client.PythonGrader),
        (SCORE, client.ScoreModelGrader),
        (LABEL, client.LabelModelGrader),
        (CLOSE | {"evaluation_metric": "rouge_l"}, client.TextSimilarityGrader),
    ],
)
def test_what_is_sent_back_is_what_the_official_client_reads(raw: dict[str, Any], type_: Any) -> None:
    type_.model_validate(parse_grader(raw, PATH).model_dump(mode="json", exclude_none=True))


def test_what_the_official_client_writes_for_a_judge_is_taken() -> None:
    typed = client.ScoreModelGrader.model_validate(SCORE | {"sampling_params": {"max_completions_tokens": 5}})
    grader = parse_grader(typed.to_dict(), PATH)
    assert grader.templates() == ["Score {{sample.output_text}} against {{item.answer}}."]


def test_names_may_be_left_out_as_in_the_hosted_guide() -> None:
    assert parse_grader(without(PYTHON, "name"), PATH).name == "python"


def test_neq_is_ne() -> None:
    grader = parse_grader(EXACT | {"operation": "neq"}, PATH)
    assert isinstance(grader, StringCheck)
    assert grader.operation == "ne"


def test_null_fields_count_as_absent() -> None:
    assert parse_grader(CLOSE | {"pass_threshold": None, "sampling_params": None}, PATH) == parse_grader(CLOSE, PATH)


@pytest.mark.parametrize(
    "graders",
    [{"exact": EXACT, "close": CLOSE}, [EXACT, CLOSE]],
    ids=["object", "list"],
)
def test_multi_is_stored_as_an_object(graders: Any) -> None:
    grader = parse_grader(multi(graders, "exact + close"), PATH)
    assert isinstance(grader, Multi)
    assert grader.model_dump()["graders"] == {"exact": EXACT, "close": CLOSE | {"pass_threshold": None}}


def test_multi_of_a_single_grader_object() -> None:
    grader = parse_grader(multi(EXACT), PATH)
    assert isinstance(grader, Multi)
    assert list(grader.graders) == ["exact"]


def test_multi_as_the_official_client_writes_it() -> None:
    typed = client.MultiGrader(
        type="multi", name="both", graders=client.StringCheckGrader.model_validate(EXACT), calculate_output="exact"
    )
    assert parse_grader(typed.to_dict(), PATH) == parse_grader(multi({"exact": EXACT}), PATH)


def test_multi_in_an_object_may_use_keys_other_than_names() -> None:
    grader = parse_grader(multi({"x": EXACT}, "x"), PATH)
    assert isinstance(grader, Multi)
    assert grader.graders["x"].name == "exact"


def test_names_may_be_left_out_where_a_key_gives_one() -> None:
    grader = parse_grader(without(multi({"x": without(EXACT, "name")}, "x"), "name"), PATH)
    assert isinstance(grader, Multi)
    assert (grader.name, grader.graders["x"].name) == ("multi", "x")


def test_a_grader_may_be_keyed_type() -> None:
    grader = parse_grader(multi({"type": EXACT}, "type"), PATH)
    assert isinstance(grader, Multi)
    assert list(grader.graders) == ["type"]


@pytest.mark.parametrize(
    ("name", "key"),
    [("Exact", "Exact"), ("Example string-check grader", "example_string_check_grader"), ("2nd", "_2nd")],
)
def test_keys_made_of_names(name: str, key: str) -> None:
    grader = parse_grader(multi([EXACT | {"name": name}], key), PATH)
    assert isinstance(grader, Multi)
    assert list(grader.graders) == [key]


def test_a_stored_grader_is_read_back() -> None:
    grader = parse_grader(multi([EXACT, CLOSE], "min(exact, close)"), PATH)
    adapter: TypeAdapter[Grader] = TypeAdapter(Grader)
    assert adapter.validate_json(grader.model_dump_json()) == grader


@pytest.mark.parametrize(
    ("raw", "param", "says"),
    [
        ("exact", "", f"Invalid type for '{PATH}': expected a grader object, but got a string."),
        (None, "", "but got null"),
        (without(EXACT, "type"), ".type", "Missing required field 'type'. Supported grader types: string_check"),
        (EXACT | {"type": "exact"}, ".type", "Unknown grader type 'exact'. Supported grader types: string_check"),
        (EXACT | {"type": ["multi"]}, ".type", "Unknown grader type a list"),
        (without(PYTHON, "source"), ".source", "Missing required field 'source'."),
        (PYTHON | {"source": "def grade(sample, item:"}, ".source", "Invalid 'source': line 1: '(' was never closed."),
        (PYTHON | {"source": "def score(sample, item): pass"}, ".source", "must define a function grade(sample, item)"),
        (PYTHON | {"source": "(" * 10_000}, ".source", "Invalid 'source': "),
        (PYTHON | {"source": "a\0b"}, ".source", "Invalid 'source': "),
        (PYTHON | {"source": "#" + "x" * 256_000}, ".source", "must have fewer than 256000"),
        (
            EXACT | {"input": "".join(f"{{{{item.f{n}}}}}" for n in range(101))},
            "",
            "read 102 different values; at most 100 may be",
        ),
        (without(SCORE, "model"), ".model", "Missing required field 'model'."),
        (SCORE | {"input": []}, ".input", "at least 1 item"),
        (SCORE | {"input": "Score it."}, ".input", "should be a list"),
        (SCORE | {"input": [{"role": "tool", "content": "x"}]}, ".input[0].role", "'tool'. Allowed: 'system'"),
        (SCORE | {"input": [{"role": "user"}]}, ".input[0].content", "Missing required field 'content'."),
        (SCORE | {"input": [{"role": "user", "content": 1}]}, ".input[0].content", "but got a number"),
        (
            SCORE | {"input": [{"role": "user", "content": ["a", {"type": "input_image", "image_url": "x"}]}]},
            ".input[0].content",
            "part 2: a block must be of type input_text or output_text; judges read texts only",
        ),
        (
            SCORE | {"input": [{"role": "user", "content": {"type": "input_text", "text": "{{x}}"}}]},
            ".input[0].content",
            "unknown namespace 'x'",
        ),
        (SCORE | {"range": [1, 0]}, ".range", "the first bound, 1, must be below the second, 0"),
        (SCORE | {"sampling_params": {"temperature": 3}}, ".sampling_params.temperature", "less than or equal to 2"),
        (SCORE | {"sampling_params": {"max_tokens": 3}}, ".sampling_params.max_tokens", "Unknown field 'max_tokens'."),
        (LABEL | {"passing_labels": ["great"]}, "", "the passing label 'great' is not one of 'labels'"),
        (LABEL | {"labels": ["good", "good"]}, "", "a label is listed twice"),
        (LABEL | {"passing_labels": []}, ".passing_labels", "at least 1 item"),
        ({"type": "math_verify"}, ".reference", "Missing required field 'reference'."),
        ({"type": "code_tests"}, ".tests", "Missing required field 'tests'."),
        ({"type": "code_tests", "tests": "{{item.t}}", "timeout_seconds": 0}, ".timeout_seconds", "greater than 0"),
        ({"type": "http"}, ".url", "Missing required field 'url'."),
        (
            {"type": "http", "url": "scores"},
            ".url",
            "'scores' cannot be called: it must start with https:// or http://",
        ),
        ({"type": "http", "url": "https://u:p@h"}, ".url", "must not hold a user name or a password"),
        ({"type": "http", "url": "https://h/#x"}, ".url", "must not have a fragment"),
        (without(EXACT, "name"), ".name", "Missing required field 'name'."),
        (without(EXACT, "reference"), ".reference", "Missing required field 'reference'."),
        (EXACT | {"name": ""}, ".name", "at least 1 character"),
        (
            EXACT | {"reference": 46},
            ".reference",
            f"Invalid type for '{PATH}.reference': expected a string, but got a number.",
        ),
        (EXACT | {"operation": "equals"}, ".operation", "'equals'. Allowed: 'eq', 'ne', 'like' or 'ilike'."),
        (EXACT | {"operation": 1}, ".operation", "Invalid value for 'operation': a number."),
        (EXACT | {"input": "{{item}}"}, ".input", "Invalid 'input': '{{item}}' needs a field after 'item'"),
        (EXACT | {"weight": 2}, ".weight", "Unknown field 'weight'. Fields of this grader: type, name, input"),
        (CLOSE | {"evaluation_metric": "cosine"}, ".evaluation_metric", "'cosine' is not supported: it needs a model"),
        (CLOSE | {"evaluation_metric": "levenshtein"}, ".evaluation_metric", "Allowed: 'fuzzy_match', 'bleu'"),
        (CLOSE | {"pass_threshold": "high"}, ".pass_threshold", "should be a number"),
        (CLOSE | {"pass_threshold": float("inf")}, ".pass_threshold", "finite number"),
        (without(multi(EXACT), "graders"), ".graders", "Missing required field 'graders'"),
        (multi("exact"), ".graders", "but got a string"),
        (multi({}), ".graders", "takes 1 to 20 graders, but got 0"),
        (multi([]), ".graders", "takes 1 to 20 graders, but got 0"),
        (multi({f"g{i}": EXACT for i in range(21)}), ".graders", "but got 21"),
        (multi({"exact": 1}), ".graders.exact", "expected a grader object, but got a number"),
        (multi({"exact": EXACT | {"operation": "is"}}), ".graders.exact.operation", "'is'"),
        (multi({"exact": without(PYTHON, "source")}), ".graders.exact.source", "Missing required field 'source'."),
        (multi({"inner": multi(EXACT)}), ".graders.inner.type", "cannot contain another multi grader"),
        (multi({"exact match": EXACT}), ".graders.exact match", "'exact match' cannot stand in a formula"),
        (multi([EXACT, 1]), ".graders[1]", "expected a grader object, but got a number"),
        (multi([EXACT | {"operation": "is"}]), ".graders[0].operation", "'is'"),
        (multi([without(EXACT, "name")]), ".graders[0].name", "needs a 'name'"),
        (multi([EXACT | {"name": "!"}]), ".graders[0].name", "needs a 'name'"),
        (multi([EXACT, EXACT]), ".graders[1].name", "Two graders are called 'exact'"),
        (multi(EXACT | {"operation": "is"}), ".graders.operation", "'is'"),
        (without(multi(EXACT), "calculate_output"), ".calculate_output", "Missing required field 'calculate_output'."),
        (
            multi({"exact": EXACT}, "exact + clse"),
            ".calculate_output",
            "Invalid 'calculate_output': Unknown name 'clse' at character 9; the graders are named: exact.",
        ),
        (multi(EXACT, "x" * 1001), ".calculate_output", "at most 1000"),
        (multi(EXACT, 1), ".calculate_output", "expected a string, but got a number"),
        (multi(EXACT, extra=1), ".extra", "Unknown field 'extra'"),
    ],
)
def test_errors_name_the_field(raw: Any, param: str, says: str) -> None:
    with pytest.raises(GraderError) as error:
        parse_grader(raw, PATH)
    assert error.value.param == PATH + param
    assert says in error.value.message


def test_all_faults_of_a_grader_are_told_at_once() -> None:
    with pytest.raises(GraderError) as error:
        parse_grader(without(EXACT, "reference") | {"operation": "is", "weight": 2}, PATH)
    message = error.value.message
    assert message.startswith("This grader has 3 faults. ")
    for param in ("reference", "operation", "weight"):
        assert f"({PATH}.{param})" in message
    assert error.value.param == f"{PATH}.reference"


def test_faults_of_all_graders_of_a_multi_grader_are_told_at_once() -> None:
    members = {"exact": EXACT | {"operation": "is"}, "close": without(CLOSE, "input"), "odd": {"type": "odd"}, "n": 1}
    with pytest.raises(GraderError) as error:
        parse_grader(multi(members, "exact + clse", extra=1), PATH)
    message = error.value.message
    for param in ("graders.exact.operation", "graders.close.input", "graders.odd.type", "graders.n", "extra"):
        assert f"({PATH}.{param})" in message
    assert message.startswith("This grader has 5 faults. ")
    assert error.value.param == f"{PATH}.graders.exact.operation"


def test_faults_without_end_are_not_told_without_end() -> None:
    with pytest.raises(GraderError) as error:
        parse_grader(EXACT | {f"field{n}": 1 for n in range(500)}, PATH)
    assert error.value.message.endswith("And 490 more.")
    assert len(error.value.message) < 5000
