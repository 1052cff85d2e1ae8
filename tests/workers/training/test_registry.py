"""What can be asked for can be trained."""

from typing import get_type_hints

import pytest

from service.jobs.methods.registry import METHODS as DEFINED
from workers.training.registry import METHODS


def test_what_is_defined_is_what_trains() -> None:
    assert list(METHODS) == list(DEFINED)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_trains_its_own_specification(name: str) -> None:
    assert get_type_hints(METHODS[name].run)["method"] is DEFINED[name]
