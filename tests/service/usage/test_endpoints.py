"""Tokens by minute, hour and day, as OpenAI's usage API tells them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from service.core.db import transaction
from service.embedded.servers import Servers
from service.usage import repository
from tests import factories
from tests.conftest import Key

DAY = 1_767_225_600
"""The beginning of a day of UTC."""
Used = Callable[..., None]


@pytest.fixture
def used(database: Servers, api_key: Key) -> Used:
    """``used(at, model, 1, 10, 20)``: requests, input and output tokens of ``acme``, of a project by ``of=key``."""

    def add(at: int, model: str, requests: int, input: int, output: int, of: Key = api_key) -> None:
        minute, numbers = "date_trunc('minute', to_timestamp(%s))", [requests, input, output]
        with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
            owner.execute(
                f"INSERT INTO token_usage VALUES (%s, {minute}, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [of.organization_id, at, model, *numbers],
            )
            owner.execute(
                f"INSERT INTO project_token_usage VALUES (%s, %s, {minute}, %s, %s, %s, %s)",
                [of.organization_id, of.project_id, at, model, *numbers],
            )

    return add


def usage(client: TestClient, **query: Any) -> Any:
    answer = client.get("/v1/organization/usage/completions", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def sums(page: Any) -> list[list[tuple[Any, ...]]]:
    names = ("model", "num_model_requests", "input_tokens", "output_tokens")
    return [[tuple(result[name] for name in names) for result in bucket["results"]] for bucket in page["data"]]


def test_days_hours_and_minutes_add_up(client: TestClient, used: Used) -> None:
    used(DAY + 30, "a", 1, 10, 20)
    used(DAY + 90, "a", 2, 1, 2)
    used(DAY + 3700, "b", 4, 100, 200)
    days = usage(client, start_time=DAY, end_time=DAY + 2 * 86_400)
    assert sums(days) == [[(None, 7, 111, 222)], []]
    assert [(each["start_time"], each["end_time"]) for each in days["data"]] == [
        (DAY, DAY + 86_400),
        (DAY + 86_400, DAY + 2 * 86_400),
    ]
    hours = usage(client, start_time=DAY, end_time=DAY + 7200, bucket_width="1h")
    assert sums(hours) == [[(None, 3, 11, 22)], [(None, 4, 100, 200)]]
    minutes = usage(client, start_time=DAY, end_time=DAY + 180, bucket_width="1m")
    assert sums(minutes) == [[(None, 1, 10, 20)], [(None, 2, 1, 2)], []]


def test_models_are_told_apart_and_chosen(client: TestClient, used: Used) -> None:
    for model in "abc":
        used(DAY, model, 1, ord(model), 0)
    asked = {"start_time": DAY, "end_time": DAY + 60}
    assert sums(usage(client, **asked, group_by="model")) == [[(each, 1, ord(each), 0) for each in "abc"]]
    assert sums(usage(client, **asked, models=["a", "c"])) == [[(None, 2, ord("a") + ord("c"), 0)]]


def test_pages_follow_each_other_without_gap_or_double(client: TestClient, used: Used) -> None:
    for hour in range(10):
        used(DAY + 3600 * hour, "a", 1, 2**hour, 0)
    asked: dict[str, Any] = {"start_time": DAY, "end_time": DAY + 36_000, "bucket_width": "1h", "limit": 4}
    pages = []
    while True:
        page = usage(client, **asked)
        pages.append(page)
        if not page["has_more"]:
            break
        asked["page"] = page["next_page"]
    assert [len(page["data"]) for page in pages] == [4, 4, 2]
    assert [result[2] for page in pages for bucket in sums(page) for result in bucket] == [2**n for n in range(10)]
    assert pages[-1]["next_page"] is None


def test_what_began_before_does_not_count(client: TestClient, used: Used) -> None:
    used(DAY + 60, "a", 1, 1, 1)
    used(DAY + 7200, "a", 1, 5, 5)
    assert sums(usage(client, start_time=DAY + 3600, end_time=DAY + 7260)) == [[(None, 1, 5, 5)]]


def test_until_now_unless_it_is_said(client: TestClient, used: Used) -> None:
    page = usage(client, start_time=DAY, bucket_width="1d", limit=31)
    assert len(page["data"]) == 31


def test_a_project_sees_its_own_and_administrators_tell_projects_apart(
    used: Used, api_key: Key, client_for: Callable[[Key | None], TestClient], new_key: Callable[..., Key]
) -> None:
    other = new_key(project="other")
    used(DAY, "base", 1, 10, 0)
    used(DAY, "base", 2, 20, 0, of=other)
    used(DAY, "ft:base:acme:secret", 4, 40, 0, of=other)
    asked: dict[str, Any] = {"start_time": DAY, "end_time": DAY + 60}
    mine, root = client_for(api_key), client_for(new_key(admin=True))
    assert sums(usage(mine, **asked, group_by="model")) == [[("base", 1, 10, 0)]]
    assert sums(usage(mine, **asked, project_ids=[other.project_id])) == [[]]
    assert sums(usage(root, **asked)) == [[(None, 7, 70, 0)]]
    by_project = usage(root, **asked, group_by="project_id")["data"][0]["results"]
    found = {each["project_id"]: each["num_model_requests"] for each in by_project}
    assert found == {api_key.project_id: 1, other.project_id: 6}
    both = usage(root, **asked, **{"group_by[]": ["project_id", "model"], "project_ids[]": other.project_id})
    assert [(each["project_id"], each["model"]) for each in both["data"][0]["results"]] == [
        (other.project_id, "base"),
        (other.project_id, "ft:base:acme:secret"),
    ]


def test_nobody_sees_anothers(
    used: Used, client_for: Callable[[Key | None], TestClient], new_key: Callable[..., Key]
) -> None:
    used(DAY, "a", 1, 1, 1)
    page = usage(client_for(new_key(organization="globex")), start_time=DAY, end_time=DAY + 60)
    assert sums(page) == [[]]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({}, "start_time"),
        ({"start_time": "soon"}, "start_time"),
        ({"start_time": -1}, "start_time"),
        ({"start_time": 2**33}, "start_time"),
        ({"start_time": DAY, "end_time": DAY}, "end_time"),
        ({"start_time": DAY, "bucket_width": "1w"}, "bucket_width"),
        ({"start_time": DAY, "limit": 32}, "limit"),
        ({"start_time": DAY, "limit": 0}, "limit"),
        ({"start_time": DAY, "group_by": "colour"}, "group_by.0"),
        ({"start_time": DAY, "page": "page_1"}, "page"),
        ({"start_time": DAY, "page": "2"}, "page"),
        ({"start_time": DAY, "user_ids[]": "user-1"}, "user_ids"),
        ({"start_time": DAY, "batch": "true"}, "batch"),
    ],
)
def test_what_makes_no_sense_is_a_400_that_names_it(client: TestClient, query: dict[str, Any], param: str) -> None:
    answer = client.get("/v1/organization/usage/completions", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_an_organisation_sees_where_it_stands(
    client: TestClient, api_key: Key, used: Used, database: Servers, models_dir: Path
) -> None:
    factories.create_job(client, factories.offer_model(models_dir))
    used(int(time.time()), "a", 1, 30, 12)
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        owner.execute("INSERT INTO gpu_usage SELECT %s, date_trunc('hour', now()), 90", [api_key.organization_id])
        owner.execute("UPDATE organizations SET gpu_hours_a_month = 2")
    with transaction("troll_operator") as session:
        repository.set_limits(session, api_key.organization_id, {"storage_bytes": 10**9, "running_jobs": 3})
    answer = client.get("/v1/organization/limits").json()
    limits, uses = answer["limits"], answer["used"]
    assert (limits["storage_bytes"], limits["running_jobs"], limits["gpu_seconds_per_month"]) == (10**9, 3, 7200)
    assert limits["chat_tokens_per_day"] is None
    files = client.get("/v1/files").json()["data"]
    assert uses == {
        "storage_bytes": sum(file["bytes"] for file in files),
        "queued_jobs": 1,
        "running_jobs": 0,
        "chat_tokens_today": 42,
        "gpu_seconds_this_month": 90,
    }


def count_hours(database: Servers, of: Key, *used: tuple[int, float]) -> None:
    with psycopg.connect(database.database_owner_url, autocommit=True) as owner:
        for at, seconds in used:
            owner.execute(
                "INSERT INTO project_gpu_usage VALUES (%s, %s, date_trunc('hour', to_timestamp(%s)), %s)",
                [of.organization_id, of.project_id, at, seconds],
            )


def gpu_seconds(client: TestClient, **query: Any) -> list[list[tuple[float, str | None]]]:
    answer = client.get("/v1/organization/usage/gpu_seconds", params={"start_time": DAY, **query})
    assert answer.status_code == 200, answer.text
    return [[(each["gpu_seconds"], each["project_id"]) for each in day["results"]] for day in answer.json()["data"]]


def test_gpu_time_adds_up_by_day_and_hour(client: TestClient, database: Servers, api_key: Key) -> None:
    count_hours(database, api_key, (DAY, 10.5), (DAY + 3600, 20), (DAY + 86_400, 40))
    assert gpu_seconds(client, end_time=DAY + 2 * 86_400) == [[(30.5, None)], [(40.0, None)]]
    assert gpu_seconds(client, bucket_width="1h", limit=3) == [[(10.5, None)], [(20.0, None)], []]


def test_gpu_time_and_storage_are_those_of_the_keys_project_or_of_all(
    database: Servers, api_key: Key, new_key: Callable[..., Key], client_for: Any
) -> None:
    other, admin = new_key(project="other"), new_key(admin=True)
    count_hours(database, api_key, (DAY, 1))
    count_hours(database, other, (DAY, 2))
    asked = {"end_time": DAY + 86_400, "group_by[]": "project_id"}
    keys = (api_key, other, admin)
    seen = [gpu_seconds(client_for(key), **asked) for key in keys]
    each = [(1.0, api_key.project_id), (2.0, other.project_id)]
    assert [sorted(day[0]) for day in seen] == [each[:1], each[1:], sorted(each)]
    assert gpu_seconds(client_for(keys[2]), **{"project_ids[]": other.project_id, **asked}) == [[each[1]]]

    content = factories.jsonl(factories.rows(2))
    factories.upload(client_for(other), content)
    size = len(content)
    stored = [client_for(key).get("/v1/organization/usage/storage").json()["data"] for key in keys]
    assert [[(one["project_id"], one["bytes"], one["file_bytes"]) for one in shown] for shown in stored] == [
        [(api_key.project_id, 0, 0)],
        [(other.project_id, size, size)],
        [(api_key.project_id, 0, 0), (other.project_id, size, size)],
    ]


def test_gpu_time_is_asked_of_some_time_in_whole_buckets(client: TestClient) -> None:
    for query, param in (({}, "start_time"), ({"start_time": DAY, "end_time": DAY}, "end_time")):
        answer = client.get("/v1/organization/usage/gpu_seconds", params=query)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    minutes = client.get("/v1/organization/usage/gpu_seconds", params={"start_time": DAY, "bucket_width": "1m"})
    assert minutes.status_code == 400
