"""Kinds of graders are told apart by their ``type``, and an error has one name everywhere."""

from collections.abc import Iterator
from typing import Any, get_args

from service.graders import schemas
from service.graders.errors import GRADE_ERRORS
from service.graders.multi import Multi
from service.graders.registry import ALIASES, SINGLE_GRADERS, Single
from service.graders.trial import RunErrors

OF_THE_HOSTED_SERVICE = {"truncated_observation_error", "unresponsive_reward_error"}
"""Flags that are answered and never set."""


def types_of(union: Any) -> Iterator[str]:
    for kind in get_args(union):
        yield from get_args(kind.model_fields["type"].annotation)


def test_no_two_kinds_have_a_type_or_an_alias_in_common() -> None:
    types = [*types_of(Single), *get_args(Multi.model_fields["type"].annotation)]
    taken = [*types, *(alias for kind in SINGLE_GRADERS.values() for alias in kind.aliases)]
    assert len(set(taken)) == len(taken)


def test_what_can_be_sent_and_stored_is_what_is_registered() -> None:
    stored, _ = get_args(schemas.Grader)
    assert list(types_of(Single)) == list(SINGLE_GRADERS)
    assert tuple(types_of(stored)) == schemas.SUPPORTED
    assert set(ALIASES.values()) <= SINGLE_GRADERS.keys()


def test_every_error_is_a_flag_of_the_answer_and_no_flag_is_left_over() -> None:
    flags = {name for name, info in RunErrors.model_fields.items() if info.annotation is bool}
    assert flags == {*GRADE_ERRORS, *OF_THE_HOSTED_SERVICE}
