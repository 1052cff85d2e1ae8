"""The jails that tests run in: a test of ``tier`` runs in each kind that this machine has, and its id says which."""

from collections.abc import Iterator

import pytest

from service.graders.settings import JailTier
from tests.workers.graders import jails
from workers.graders.jail import Jail


@pytest.fixture(scope="session", params=jails.TIERS)
def tier(request: pytest.FixtureRequest) -> JailTier:
    if not jails.NAMESPACES:
        pytest.skip("this kernel allows no user namespaces, so no jail can be made here")
    return request.param


@pytest.fixture(scope="module")
def jail(tier: JailTier) -> Iterator[Jail]:
    """One jail for a module's tests: whatever a test does to it, the next one must find it working."""
    with Jail(jails.settings(tier)) as started:
        yield started
