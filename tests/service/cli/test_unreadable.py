"""Jobs that the server cannot read, on the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import Result

from service.embedded.servers import Servers
from tests import factories
from tests.factories import UNREADABLE


@pytest.mark.parametrize("how", UNREADABLE)
def test_a_job_that_cannot_be_read_is_listed_shown_and_cancelled(
    troll: Callable[..., Result], client: TestClient, models_dir: Path, database: Servers, how: str
) -> None:
    id = factories.create_job(client, factories.offer_model(models_dir, "tiny/cli"))["id"]
    factories.spoil(database, id, how)
    assert id in troll("jobs", "list").stdout
    shown = troll("jobs", "show", id)
    assert shown.exit_code == 0, shown.output
    assert "cannot be read by this server" in shown.stdout
    assert troll("jobs", "cancel", id).stdout == f"{id}: cancelled\n"
