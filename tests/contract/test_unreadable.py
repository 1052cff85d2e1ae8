"""Jobs that a server cannot read, as the official client sees them."""

from typing import Any

import pytest

from service.embedded.servers import Servers
from tests import factories
from tests.contract.conftest import Official
from tests.factories import UNREADABLE


@pytest.mark.parametrize("how", UNREADABLE)
def test_every_client_lists_retrieves_and_cancels_them(
    official: Official, body: dict[str, Any], database: Servers, how: str
) -> None:
    jobs = official.client.fine_tuning.jobs
    known, other = (official.ask(jobs.create(**body)).id for _ in range(2))
    factories.spoil(database, other, how)
    listed = {job.id: job for job in official.everything(official.ask(jobs.list()))}
    assert listed.keys() == {known, other}
    assert listed[known].error is None
    job = official.ask(jobs.retrieve(other))
    assert (job.status, job.method, job.error.code) == ("queued", None, "unreadable_specification")
    assert official.ask(jobs.cancel(other)).status == "cancelled"
    assert official.everything(official.ask(jobs.list_events(other)))[0].message == "Job cancelled"
