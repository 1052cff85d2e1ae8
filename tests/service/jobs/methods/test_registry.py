"""What is registered is what can be asked for, stored, examined and shown."""

from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from service.app import create_app
from service.core.errors import DomainError
from service.jobs.examination import Question
from service.jobs.hyperparameters.option import resolve
from service.jobs.methods.registry import METHODS, Method, type_of
from service.jobs.spec import JobSpec
from service.submission.request import parse_method


def in_the_document(component: str, property: str) -> set[str]:
    shown = create_app().openapi()["components"]["schemas"][component]["properties"][property]
    union = next((each for each in shown.get("anyOf", [shown]) if "discriminator" in each), shown)
    return set(union["discriminator"]["mapping"])


def test_every_method_has_a_type_of_its_own() -> None:
    assert [type_of(kind) for kind in get_args(Method)] == list(METHODS)


def test_what_can_be_stored_is_what_is_registered() -> None:
    assert JobSpec.model_fields["method"].annotation == Method


@pytest.mark.parametrize(("component", "property"), [("CreateJob", "method"), ("JobObject", "method")])
def test_what_is_documented_is_what_is_registered(component: str, property: str) -> None:
    assert in_the_document(component, property) == METHODS.keys()


def test_a_refusal_lists_what_is_registered() -> None:
    with pytest.raises(DomainError) as error:
        parse_method({"type": "dpo", "dpo": {}}, None, lambda raw, path: raw)
    listed = " or ".join(f"'{name}'" for name in METHODS)
    assert (error.value.message, error.value.param) == (
        f"'dpo' is not served; method.type is {listed}.",
        "method.type",
    )


@pytest.mark.parametrize("type_", [["supervised"], {}, 1, True, ""])
def test_a_type_of_any_shape_is_refused(type_: Any) -> None:
    with pytest.raises(DomainError, match="is not served"):
        parse_method({"type": type_}, None, lambda raw, path: raw)


@pytest.mark.parametrize("name", METHODS)
def test_a_question_may_be_about_every_method_and_no_other(name: str) -> None:
    plain: dict[str, Any] = {"model": None, "files": {}, "grader": None}
    assert Question.model_validate(plain | {"method": name}).method == name
    with pytest.raises(ValidationError):
        Question.model_validate(plain | {"method": f"{name}s"})


@pytest.mark.parametrize("name", METHODS)
def test_hyperparameters_of_a_method_are_resolved_to_what_it_stores(name: str) -> None:
    kind: Any = METHODS[name]
    resolved: object = resolve(kind.asked(), training_rows=8)
    assert type(resolved) is kind.model_fields["hyperparameters"].annotation


def test_methods_are_told_apart_by_their_type_alone() -> None:
    with pytest.raises(ValidationError, match="type"):
        TypeAdapter(JobSpec).validate_python({"method": {"hyperparameters": {}}})
