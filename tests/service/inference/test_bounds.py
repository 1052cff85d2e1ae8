"""Schemas that are refused before anything is made of them, each by its place and the bound."""

from typing import Any

import pytest

from service.core.errors import DomainError
from service.inference import bounds

PARAM = "response_format.json_schema.schema"


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "array", "minItems": 10**9}, "minItems"),
        ({"type": "array", "maxItems": 10**9}, "maxItems"),
        ({"type": "array", "minItems": float("inf")}, "minItems"),
        ({"type": "array", "minItems": float("nan")}, "minItems"),
        ({"properties": {"a": {"items": {"minProperties": 20_000}}}}, "properties.a.items.minProperties"),
        ({"properties": {"const": {"minItems": 10**6}}}, "properties.const.minItems"),
        ({"anyOf": [{}, {"maxContains": 10**6}]}, "anyOf.1.maxContains"),
        ({"type": "string", "minLength": 100_001}, "minLength"),
        ({"$defs": {"a": {"maxLength": 10**7}}}, "$defs.a.maxLength"),
        ({"pattern": "a" * 1001}, "pattern"),
        ({"patternProperties": {"a" * 1001: {}}}, "patternProperties"),
        ({"multipleOf": 10**400}, "multipleOf"),
        ({"enum": [1e308]}, "enum.0"),
        ({"enum": [float("nan")]}, "enum.0"),
        ({"x-guidance": {"lenient": True}}, "x-guidance"),
        (nested(65), ""),
        (nested(5000), ""),
        ({"enum": [0] * 10_000}, ""),
        ({"const": "é" * 66_000}, ""),
        ({"properties": {f"{'p' * 90}{n}": {} for n in range(2000)}}, ""),
    ],
)
def test_what_is_out_of_bounds_is_told_by_its_place(schema: dict[str, Any], place: str) -> None:
    with pytest.raises(DomainError) as refusal:
        bounds.check(schema, PARAM)
    assert refusal.value.status == 400
    assert refusal.value.param == (f"{PARAM}.{place}" if place else PARAM)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        nested(64),
        {"type": "array", "minItems": 10_000, "maxItems": 10_000},
        {"type": "string", "minLength": 100_000, "pattern": "a" * 1000},
        {"enum": ["value"] * 9000},
        {"properties": {"minItems": {"type": "integer"}}},
        {"default": {"minItems": 10**9}, "const": {"maxLength": 10**9}},
        {"minimum": -(2.0**62), "maximum": 2**63 - 1, "exclusiveMinimum": True},
    ],
)
def test_what_is_within_bounds_is_taken(schema: dict[str, Any]) -> None:
    bounds.check(schema, PARAM)


def test_places_are_short_enough_to_be_read() -> None:
    schema: dict[str, Any] = {"minItems": 10**9}
    for _ in range(20):
        schema = {"properties": {"p" * 500: schema}}
    with pytest.raises(DomainError) as refusal:
        bounds.check(schema, PARAM)
    assert len(refusal.value.param or "") < 250
