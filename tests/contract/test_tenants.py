"""Another organisation's ids look like ids that do not exist, and ids with ':' and '/' find their way."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.conftest import Key
from tests.contract.conftest import Official
from workers.jobs import supervisor


@pytest.fixture
def stranger(connect: Callable[..., openai.OpenAI], new_key: Callable[..., Key]) -> openai.OpenAI:
    return connect(new_key(organization="globex"))


@pytest.fixture
def finished(stub: None, acme: openai.OpenAI, body: dict[str, Any]) -> Any:
    """A job of ``acme`` that succeeded, with a model whose id holds colons and a slash."""
    id = acme.fine_tuning.jobs.create(**body).id
    supervisor.run("worker-1")
    return acme.fine_tuning.jobs.retrieve(id)


@pytest.mark.parametrize(
    "call",
    [
        lambda client, job: client.files.retrieve(job.training_file),
        lambda client, job: client.files.content(job.training_file),
        lambda client, job: client.files.delete(job.training_file),
        lambda client, job: client.fine_tuning.jobs.retrieve(job.id),
        lambda client, job: client.fine_tuning.jobs.cancel(job.id),
        lambda client, job: client.fine_tuning.jobs.pause(job.id),
        lambda client, job: client.fine_tuning.jobs.resume(job.id),
        lambda client, job: client.fine_tuning.jobs.list_events(job.id),
        lambda client, job: client.fine_tuning.jobs.checkpoints.list(job.id),
        lambda client, job: client.models.retrieve(job.fine_tuned_model),
        lambda client, job: client.models.delete(job.fine_tuned_model),
        lambda client, job: client.models.retrieve(f"{job.fine_tuned_model}:ckpt-step-2"),
    ],
)
def test_what_is_another_organisations_is_not_found(stranger: openai.OpenAI, finished: Any, call: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        call(stranger, finished)


def test_lists_hold_ones_own_only(stranger: openai.OpenAI, finished: Any) -> None:
    assert list(stranger.files.list()) == []
    assert list(stranger.fine_tuning.jobs.list()) == []
    assert {model.owned_by for model in stranger.models.list()} == {"system"}


def test_ids_with_colons_and_slashes(official: Official, finished: Any) -> None:
    id = finished.fine_tuned_model
    assert ":" in id
    assert "/" in id
    assert official.ask(official.client.models.retrieve(id)).id == id
    checkpoint = f"{id}:ckpt-step-2"
    assert official.ask(official.client.models.retrieve(checkpoint)).id == checkpoint
    assert official.ask(official.client.models.delete(id)).deleted
    with pytest.raises(openai.NotFoundError):
        official.ask(official.client.models.retrieve(id))
