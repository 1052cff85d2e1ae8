"""A job's metrics as curves."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from service.core.db import transaction
from service.jobs import repository
from service.jobs.repository import EventDraft
from tests.conftest import Key
from tests.contract.test_administration import job_in

PATH = "/fine_tuning/jobs/{}/metrics"


@pytest.fixture
def client(connect: Callable[..., openai.OpenAI], new_key: Callable[..., Key]) -> openai.OpenAI:
    return connect(new_key())


@pytest.fixture
def job(client: openai.OpenAI, model: str) -> str:
    return job_in(client, model)


def tell(job: str, *data: Any) -> None:
    with transaction("troll_worker") as session:
        row = repository.get(session, job)
        assert row is not None
        drafts = [EventDraft(f"Step {n}", type="metrics", data=each) for n, each in enumerate(data)]
        repository.append_events(session, row, drafts)


def curves(client: openai.OpenAI, job: str, *names: str, **query: Any) -> Any:
    return client.get(PATH.format(job), cast_to=object, options={"params": {"names": list(names), **query}})


def step(number: int, **values: Any) -> dict[str, Any]:
    return {"step": number, "troll": {"tokens": 10, "entropy": number / 10}, **values}


def test_metrics_come_as_columns(client: openai.OpenAI, job: str) -> None:
    tell(job, *(step(n, train_mean_reward=n / 4 if n else None) for n in range(5)))
    found = curves(client, job, "train_mean_reward", "troll.entropy", "nothing.such")
    assert found["step"] == [0, 1, 2, 3, 4]
    assert found["tokens"] == [10, 20, 30, 40, 50]
    assert found["seconds"] == sorted(found["seconds"])
    assert found["values"] == {
        "train_mean_reward": [None, 0.25, 0.5, 0.75, 1.0],
        "troll.entropy": [0, 0.1, 0.2, 0.3, 0.4],
        "nothing.such": [None] * 5,
    }
    assert found["last_seq"] == client.fine_tuning.jobs.list_events(job).data[0].seq  # type: ignore[attr-defined]


def test_many_steps_come_as_the_means_of_a_few_points(client: openai.OpenAI, job: str) -> None:
    tell(job, *(step(n, loss=None if n % 2 else float(n)) for n in range(1000)))
    found = curves(client, job, "loss", "troll.entropy", points=10)
    assert found["step"] == [99 + 100 * n for n in range(10)]
    assert found["values"]["loss"] == [49 + 100 * n for n in range(10)]
    assert found["values"]["troll.entropy"] == pytest.approx([4.95 + 10 * n for n in range(10)])


def test_what_another_version_told_is_left_out(client: openai.OpenAI, job: str) -> None:
    odd: list[Any] = [
        {"step": "one", "loss": 1},
        {"loss": 1},
        {"step": 2, "loss": "two"},
        {"step": 3, "loss": {"a": 1}},
    ]
    tell(job, *odd, 5, "five", [{"step": 5}], None, {"step": 4, "troll": "x", "loss": 4})
    found = curves(client, job, "loss", "loss.a", "troll.entropy")
    assert found["step"] == [2, 3, 4]
    assert found["values"] == {"loss": [None, None, 4], "loss.a": [None, 1, None], "troll.entropy": [None] * 3}


def test_a_job_without_metrics_has_empty_columns(client: openai.OpenAI, job: str) -> None:
    found = curves(client, job, "loss")
    assert (found["step"], found["values"], found["last_seq"]) == ([], {"loss": []}, 0)


@pytest.mark.parametrize(
    "query",
    [{}, {"names": ["a'b"]}, {"names": ["a..b"]}, {"names": [""]}, {"names": ["a"] * 129}]
    + [{"names": ["a"], "points": each} for each in (0, 2001, "x")],
)
def test_what_cannot_be_answered_is_refused(client: openai.OpenAI, job: str, query: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        client.get(PATH.format(job), cast_to=object, options={"params": query})
