"""What can be defined can be graded with."""

from typing import get_type_hints

import pytest

from service.graders.registry import SINGLE_GRADERS as DEFINED
from workers.graders.registry import SINGLE_GRADERS


def test_what_is_defined_is_what_grades() -> None:
    assert list(SINGLE_GRADERS) == list(DEFINED)


@pytest.mark.parametrize("type_", SINGLE_GRADERS)
def test_each_kind_is_made_of_its_own_definition(type_: str) -> None:
    assert get_type_hints(SINGLE_GRADERS[type_].__init__)["definition"] is DEFINED[type_]


@pytest.mark.parametrize("type_", SINGLE_GRADERS)
def test_kinds_that_have_code_of_their_own_say_what_keeps_it_from_being_loaded(type_: str) -> None:
    assert ("fault" in vars(SINGLE_GRADERS[type_])) == DEFINED[type_].loads_code
