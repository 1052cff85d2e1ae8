"""Tokens are counted in memory and written down later, whatever goes wrong in between."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from service.core.db import WholeOrganization, tenant
from service.usage import meter, repository
from tests.conftest import Key


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(meter, "WRITE_SECONDS", 0.05)
    yield
    monkeypatch.undo()


def written(organization_id: str) -> int:
    with tenant(WholeOrganization(organization_id)) as session:
        return repository.tokens_since(session, organization_id, datetime.min.replace(tzinfo=UTC))


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OperationalError("away", None, Exception())])
def test_what_could_not_be_written_is_kept_and_written_later(
    api_key: Key, often: None, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [error, error]
    add = repository.add_tokens

    def failing(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        add(*arguments)

    monkeypatch.setattr(repository, "add_tokens", failing)
    meter.count(api_key.organization_id, api_key.project_id, "m", input=3, output=4)
    deadline = time.monotonic() + 60
    while meter.pending(api_key.organization_id) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (written(api_key.organization_id), failures) == (7, [])
