"""Curves of long runs: what is folded says what events say, and no more is sent for 10,000 steps than for 100."""

import json
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from service.core.db import transaction
from service.embedded.servers import Servers
from service.jobs import folding, repository, service
from service.jobs.models import MetricBlock
from service.jobs.repository import EventDraft
from tests import factories

NAMES = ("reward", "troll.entropy", "valid", "late", "nothing.such")


@pytest.fixture
def make(client: TestClient, models_dir: Path, database: Servers) -> Callable[..., str]:
    """``make(1000)`` is a job of so many steps: each is told a second after the one before, and those that are folded
    have been as its worker would.
    """
    model = factories.offer_model(models_dir)

    def job(steps: int, *, folded: bool = True) -> str:
        id = str(factories.create_job(client, model)["id"])
        with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
            owner.execute(
                """
                INSERT INTO fine_tuning_events (job_id, seq, organization_id, level, type, message, data, created_at)
                SELECT job.id, job.event_count + n, job.organization_id, 'info', 'metrics', 'Step ' || n,
                    jsonb_build_object(
                        'step', n, 'reward', n / 4.0, 'valid', CASE WHEN n %% 10 = 0 THEN n END,
                        'troll', jsonb_build_object('tokens', 10, 'entropy', sin(n)), 'samples', '[]'::jsonb
                    ) || CASE WHEN n > %(steps)s / 2 THEN jsonb_build_object('late', 1) ELSE '{}'::jsonb END,
                    timestamptz '2026-01-01' + n * interval '1 second'
                FROM fine_tuning_jobs job, generate_series(1, %(steps)s) n WHERE job.id = %(id)s
                """,
                {"id": id, "steps": steps},
            )
            owner.execute("UPDATE fine_tuning_jobs SET event_count = event_count + %s WHERE id = %s", [steps, id])
        if folded:
            for _ in range(0, steps, folding.AT_ONCE * folding.FINE):
                with transaction("troll_worker") as session:
                    row = repository.locked(session, id)
                    assert row is not None
                    folding.fold(session, row)
        return id

    return job


def blocks(id: str) -> dict[int, int]:
    with transaction("troll_worker") as session:
        found = session.query(MetricBlock.size).where(MetricBlock.job_id == id).all()
    sizes = [size for (size,) in found]
    return {size: sizes.count(size) for size in set(sizes)}


def curves(client: TestClient, id: str, **query: Any) -> Any:
    answer = client.get(f"/v1/fine_tuning/jobs/{id}/metrics", params={"names[]": NAMES, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_blocks_are_made_as_soon_as_there_are_enough_steps(make: Callable[..., str]) -> None:
    assert blocks(make(7)) == {}
    assert blocks(make(8)) == {8: 1}
    assert blocks(make(127)) == {8: 15, 32: 3}
    assert blocks(make(520))[512] == 1
    assert blocks(make(400)) == {8: 50, 32: 12, 128: 3}


def test_telling_a_step_folds(make: Callable[..., str]) -> None:
    id = make(7, folded=False)
    with transaction("troll_worker") as session:
        job = repository.locked(session, id)
        assert job is not None
        service.tell(session, job, [EventDraft("Step 8", type="metrics", data={"step": 8, "reward": 1.0})])
    assert blocks(id) == {8: 1}


# With 20 points: events up to 40 steps, then blocks, of 32 from 320 steps and of 128 from 1,280, and what is left.
@pytest.mark.parametrize("steps", [5, 43, 200, 643, 668, 1800])
def test_a_point_is_the_mean_of_the_steps_it_stands_for(
    client: TestClient, make: Callable[..., str], steps: int
) -> None:
    found = curves(client, make(steps), points=20)
    at = [0, *found["step"]]
    assert found["step"] == sorted(set(found["step"]))
    assert (found["step"][-1], found["tokens"][-1], found["seconds"][-1]) == (steps, 10 * steps, steps - 1)
    assert len(found["step"]) <= 20
    for n, (before, last) in enumerate(pairwise(at)):
        inside = range(int(before) + 1, int(last) + 1)
        evaluated = [each for each in inside if each % 10 == 0]
        assert found["values"]["reward"][n] == pytest.approx(sum(inside) / len(inside) / 4)
        assert found["values"]["valid"][n] == (pytest.approx(sum(evaluated) / len(evaluated)) if evaluated else None)
        assert found["values"]["late"][n] == (1 if last > steps // 2 else None)
        assert (found["tokens"][n], found["seconds"][n]) == (10 * last, last - 1)
    assert found["values"]["nothing.such"] == [None] * len(found["step"])


@pytest.mark.parametrize("steps", [100, 700])
@pytest.mark.parametrize("between", [(40, 60), (1, 8), (95, 100), (17, 17), (-5, 20)])
def test_a_part_of_a_run_is_shown_as_it_was_told(
    client: TestClient, make: Callable[..., str], steps: int, between: tuple[int, int]
) -> None:
    id = make(steps)
    found = curves(client, id, points=30, start_step=between[0], end_step=between[1])
    inside = [float(each) for each in range(max(1, between[0]), between[1] + 1)]
    assert found["step"] == inside
    assert found["values"]["reward"] == [each / 4 for each in inside]
    assert found["tokens"] == [10 * each for each in inside]
    assert found["seconds"] == [each - 1 for each in inside]


@pytest.mark.parametrize("between", [(20, 600), (800, 1799), (1790, 1900), (1801, 1900)])
def test_a_large_part_is_shown_in_few_points_which_hold_its_ends(
    client: TestClient, make: Callable[..., str], between: tuple[int, int]
) -> None:
    found = curves(client, make(1800), points=20, start_step=between[0], end_step=between[1])
    last = min(between[1], 1800)
    if between[0] > 1800:
        assert found["step"] == []
        return
    assert len(found["step"]) <= 20
    # A block that reaches over an end is shown whole.
    assert between[0] <= found["step"][0] < between[0] + 128
    assert last <= found["step"][-1] < last + 128


def test_steps_that_an_earlier_release_told_are_read_and_folded_when_the_job_goes_on(
    client: TestClient, make: Callable[..., str]
) -> None:
    id = make(1000, folded=False)
    before = curves(client, id, points=10)
    assert before["step"] == [100.0 * n for n in range(1, 11)]
    with transaction("troll_worker") as session:
        job = repository.locked(session, id)
        assert job is not None
        service.tell(session, job, [EventDraft("Step 1001", type="metrics", data={"step": 1001})])
    assert blocks(id)[8] == folding.AT_ONCE
    assert curves(client, id, points=10)["step"][-1] == 1001


def test_what_is_told_without_a_step_is_in_no_curve(client: TestClient, make: Callable[..., str]) -> None:
    id = make(4, folded=False)
    odd: list[Any] = [{"reward": 99}, {"step": "x", "reward": 99}, 5, None, {"step": 5, "reward": 1.25}]
    with transaction("troll_worker") as session:
        job = repository.locked(session, id)
        assert job is not None
        service.tell(session, job, [EventDraft("odd", type="metrics", data=each) for each in odd])
    assert blocks(id) == {8: 1}
    found = curves(client, id)
    assert (found["step"], found["values"]["reward"]) == ([1, 2, 3, 4, 5], [0.25, 0.5, 0.75, 1, 1.25])


def test_no_more_is_sent_of_ten_thousand_steps_than_of_some_hundreds(
    client: TestClient, make: Callable[..., str]
) -> None:
    sizes = {}
    for steps in (100, 400, 10_000):
        answer = client.get(f"/v1/fine_tuning/jobs/{make(steps)}/metrics", params={"names[]": NAMES, "points": 400})
        sizes[steps] = len(answer.content), len(answer.json()["step"])
    assert [points for _, points in sizes.values()] == [100, 400, 313]
    # A number has a few digits more.
    assert sizes[10_000][0] < 1.5 * sizes[400][0]


def test_events_are_those_in_words_or_those_with_answers(
    client: TestClient, make: Callable[..., str], database: Servers
) -> None:
    id = make(30)
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        samples = json.dumps({"samples": [{"prompt": "1+1=", "answer": "2", "reward": 1.0}]})
        owner.execute(
            "UPDATE fine_tuning_events SET data = data || %s WHERE job_id = %s AND (data->>'step')::int IN (10, 20)",
            [samples, id],
        )
        for odd in ('{"samples": 1}', "{}"):
            owner.execute("UPDATE fine_tuning_events SET data = data || %s WHERE data->>'step' = '5'", [odd])

    def of(only: str, **query: Any) -> Any:
        answer = client.get(f"/v1/fine_tuning/jobs/{id}/events", params={"only": only, **query})
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert [event["data"]["step"] for event in of("answers")["data"]] == [20, 10]
    newest = of("answers", limit=1)
    assert newest["has_more"] is True
    assert [event["data"]["step"] for event in of("answers", after=newest["last_id"])["data"]] == [10]
    assert {event["type"] for event in of("message")["data"]} == {"message"}
    assert client.get(f"/v1/fine_tuning/jobs/{id}/events?only=others").status_code == 400


def test_curves_of_validation_sets_with_a_hyphen_are_served(client: TestClient, make: Callable[..., str]) -> None:
    path = f"/v1/fine_tuning/jobs/{make(2)}/metrics"
    answer = client.get(path, params={"names[]": "validation_sets.aime-24.mean_at_k"})
    assert answer.json()["values"] == {"validation_sets.aime-24.mean_at_k": [None, None]}


def test_what_was_folded_goes_with_the_events(make: Callable[..., str], database: Servers) -> None:
    id = make(20)
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        owner.execute("UPDATE fine_tuning_jobs SET finished_at = now() - interval '3 days' WHERE id = %s", [id])
    with transaction("troll_control") as session:
        assert repository.remove_old_events(session, timedelta(days=1), 10) == 1
    assert blocks(id) == {}
