"""Limits and usage on the terminal."""

import csv
import io
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from service.cli.failure import CommandError
from service.cli.output import shown_bytes
from service.cli.usage import parsed
from service.settings import settings
from service.usage import meter
from tests.conftest import Key


def test_limits_are_set_shown_and_left_to_the_installation(troll: Any, api_key: Key) -> None:
    given = ("--storage", "1.5GB", "--running", "3", "--chat-tokens-a-day", "1000")
    assert troll("admin", "limits", "acme", *given).exit_code == 0
    shown = json.loads(troll("admin", "limits", "acme", "--json").stdout)
    assert (shown["storage_bytes"], shown["running_jobs"], shown["chat_tokens_a_day"]) == (1_500_000_000, 3, 1000)
    assert (shown["queued_jobs"], shown["stored_bytes"]) == (settings().max_queued_jobs, 0)
    again = json.loads(troll("admin", "limits", "acme", "--running", "default", "--json").stdout)
    assert (again["running_jobs"], again["storage_bytes"]) == (settings().max_running_jobs, 1_500_000_000)
    assert "organisation" in troll("admin", "limits", "acme").stdout


@pytest.mark.parametrize("given", [("--storage", "much"), ("--queued", "3GB"), ("--queued", "-1"), ("--queued", "1.5")])
def test_another_limit_is_refused_and_nothing_set(troll: Any, api_key: Key, given: tuple[str, str]) -> None:
    result = troll("admin", "limits", "acme", "--running", "1", *given)
    assert result.exit_code != 0
    assert json.loads(troll("admin", "limits", "acme", "--json").stdout)["running_jobs"] == settings().max_running_jobs


def test_limits_of_nobody_are_an_error(troll: Any, api_key: Key) -> None:
    assert "nobody" in troll("admin", "limits", "nobody", "--running", "1").output


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("20", 20), ("1kB", 1000), ("1 KiB", 1024), ("2.25MiB", 2359296), ("1TB", 10**12)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parsed(text, "storage_bytes") == size


@pytest.mark.parametrize("text", ["", "GB", "1.5", "1e9", "1XB", "9" * 16, "999999999999999TiB"])
def test_other_sizes_are_not(text: str) -> None:
    with pytest.raises(CommandError):
        parsed(text, "storage_bytes")


def test_sizes_are_shown() -> None:
    assert [shown_bytes(each) for each in (0, 999, 1500, 2 * 10**9)] == ["0 B", "999 B", "1.5 kB", "2.0 GB"]


def test_what_was_used_is_shown_of_all(troll: Any, api_key: Key) -> None:
    meter.count(api_key.organization_id, api_key.project_id, "m", input=3, output=4)
    meter.write()
    [row] = json.loads(troll("admin", "usage", "--json").stdout)
    assert (row["name"], row["requests"], row["input_tokens"], row["output_tokens"]) == ("acme", 1, 3, 4)
    [line] = csv.DictReader(io.StringIO(troll("admin", "usage", "--csv").stdout))
    assert line == {name: str(value) for name, value in row.items()}
    [before] = json.loads(troll("admin", "usage", "--month", "2020-12", "--json").stdout)
    assert before["requests"] == 0
    assert f"{datetime.now(UTC):%Y-%m}" in troll("admin", "usage", "--month", "2020-13").output


def test_an_organisation_sees_its_own(troll: Any, api_key: Key, new_key: Any) -> None:
    meter.count(api_key.organization_id, api_key.project_id, "mine", input=30, output=12)
    globex = new_key(organization="globex")
    meter.count(globex.organization_id, globex.project_id, "theirs", input=5, output=5)
    meter.write()
    troll("admin", "limits", "acme", "--chat-tokens-a-day", "1000", "--storage", "2GB")
    shown = troll("usage").stdout
    assert re.search(r"mine\t1\t30\t12", shown)
    assert "theirs" not in shown
    assert "tokens of chats today\t42\t1000" in shown
    assert "storage\t0 B\t2.0 GB" in shown
    told = json.loads(troll("usage", "--json", "--days", "1").stdout)
    assert [result["model"] for bucket in told["tokens"] for result in bucket["results"]] == ["mine"]
    assert (told["used"]["chat_tokens_today"], told["limits"]["chat_tokens_per_day"]) == (42, 1000)
