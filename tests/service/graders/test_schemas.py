"""What users send as a grader, in all its shapes, and the errors for what cannot be one."""

from typing import Any

import pytest
from openai.types import graders as client
from pydantic import TypeAdapter

from service.graders.schemas import Grader, GraderError, Multi, StringCheck, TextSimilarity, parse_grader

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


def multi(graders: Any, formula: Any = "exact", **fields: Any) -> dict[str, Any]:
    return {"type": "multi", "name": "both", "graders": graders, "calculate_output": formula, **fields}


def without(grader: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in grader.items() if key not in keys}


def test_string_check() -> None:
    assert parse_grader(EXACT, PATH) == StringCheck.model_validate(EXACT)


def test_text_similarity() -> None:
    assert parse_grader(CLOSE | {"pass_threshold": 0.8}, PATH) == TextSimilarity.model_validate(
        CLOSE | {"pass_threshold": 0.8}
    )


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
        (
            {"type": "python", "source": "def grade(sample, item): return 1.0"},
            ".type",
            "Graders of type 'python' are not supported yet. Supported grader types: string_check, text_similarity",
        ),
        ({"type": "score_model"}, ".type", "'score_model' are not supported yet"),
        ({"type": "label_model"}, ".type", "'label_model' are not supported yet"),
        ({"type": "endpoint"}, ".type", "'endpoint' are not supported yet"),
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
        (
            CLOSE | {"evaluation_metric": "bleu"},
            ".evaluation_metric",
            "The metric 'bleu' is not supported yet. Supported metrics: fuzzy_match.",
        ),
        (CLOSE | {"evaluation_metric": "cosine"}, ".evaluation_metric", "'cosine' is not supported yet"),
        (CLOSE | {"evaluation_metric": "levenshtein"}, ".evaluation_metric", "Allowed: 'fuzzy_match'."),
        (CLOSE | {"pass_threshold": "high"}, ".pass_threshold", "valid number"),
        (CLOSE | {"pass_threshold": float("inf")}, ".pass_threshold", "finite number"),
        (without(multi(EXACT), "graders"), ".graders", "Missing required field 'graders'"),
        (multi("exact"), ".graders", "but got a string"),
        (multi({}), ".graders", "takes 1 to 20 graders, but got 0"),
        (multi([]), ".graders", "takes 1 to 20 graders, but got 0"),
        (multi({f"g{i}": EXACT for i in range(21)}), ".graders", "but got 21"),
        (multi({"exact": 1}), ".graders.exact", "expected a grader object, but got a number"),
        (multi({"exact": EXACT | {"operation": "is"}}), ".graders.exact.operation", "'is'"),
        (multi({"exact": EXACT | {"type": "python"}}), ".graders.exact.type", "'python' are not supported yet"),
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
