"""``troll usage``, and what operators see and set of what organisations use."""

import csv
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from service.accounts import repository as accounts
from service.cli.connection import AsJSON, StackFolder, connect
from service.cli.failure import CommandError
from service.cli.operator import OperatorFolder, use_database
from service.cli.output import show_table, shown_bytes
from service.core.db import transaction
from service.usage import repository, service

UNITS = {"": 1, "b": 1} | {
    f"{letter}{middle}b": base ** (power + 1)
    for middle, base in (("", 1000), ("i", 1024))
    for power, letter in enumerate("kmgt")
}
DEFAULT = "default"
DAYS_SHOWN = 31

Size = Annotated[str | None, typer.Option(metavar="SIZE")]
Number = Annotated[str | None, typer.Option(metavar="N")]


def usage(
    days: Annotated[int, typer.Option(min=1, max=DAYS_SHOWN, help="So many days, today included.")] = 7,
    data_dir: StackFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Show the tokens that your project used, by day of UTC and model, and where your organisation stands."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    query = {
        "start_time": int(today.timestamp()) - 86_400 * (days - 1),
        "bucket_width": "1d",
        "group_by": "model",
        "limit": days,
    }
    client = connect(data_dir)
    page: Any = client.get("/organization/usage/completions", cast_to=object, options={"params": query})
    standing: Any = client.get("/organization/limits", cast_to=object)
    if as_json:
        typer.echo(json.dumps({"tokens": page["data"], **{name: standing[name] for name in ("limits", "used")}}))
        return
    show_table(
        ("day", "model", "requests", "input tokens", "output tokens"),
        [
            (
                f"{datetime.fromtimestamp(bucket['start_time'], UTC):%Y-%m-%d}",
                result["model"],
                *(str(result[name]) for name in ("num_model_requests", "input_tokens", "output_tokens")),
            )
            for bucket in page["data"]
            for result in bucket["results"]
        ],
    )
    limits, used = standing["limits"], standing["used"]
    show_table(
        ("", "used", "of"),
        [
            ("storage", shown_bytes(used["storage_bytes"]), _of(limits["storage_bytes"], shown_bytes)),
            ("GPU-seconds this month", f"{used['gpu_seconds_this_month']:.0f}", _of(limits["gpu_seconds_per_month"])),
            ("tokens of chats today", str(used["chat_tokens_today"]), _of(limits["chat_tokens_per_day"])),
            ("jobs that wait", str(used["queued_jobs"]), _of(limits["queued_jobs"])),
            ("jobs at work", str(used["running_jobs"]), _of(limits["running_jobs"])),
        ],
    )


def _of(limit: Any, shown: Callable[[Any], str] = lambda limit: f"{limit:.0f}") -> str:
    return "any number" if limit is None else shown(limit)


def usage_of_all(
    month: Annotated[
        str | None, typer.Option(metavar="YYYY-MM", help="A calendar month of UTC. Default: the one at hand.")
    ] = None,
    data_dir: OperatorFolder = None,
    as_json: AsJSON = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for spreadsheets.")] = False,
) -> None:
    """Show what each organisation used in a month: GPU-seconds, requests, tokens; and the bytes that it stores now."""
    begin = _month(month)
    end = begin.replace(year=begin.year + begin.month // 12, month=begin.month % 12 + 1)
    use_database(data_dir)
    with transaction("troll_operator") as session:
        rows = [asdict(row) for row in repository.used(session, begin, end)]
    if as_json:
        typer.echo(json.dumps(rows))
    elif as_csv:
        names = ("id", "name", "gpu_seconds", "requests", "input_tokens", "output_tokens", "stored_bytes")
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        show_table(
            ("id", "name", "GPU-hours", "requests", "input tokens", "output tokens", "stored now"),
            [
                (
                    row["id"],
                    row["name"],
                    f"{row['gpu_seconds'] / 3600:.2f}",
                    *(str(row[name]) for name in ("requests", "input_tokens", "output_tokens")),
                    shown_bytes(row["stored_bytes"]),
                )
                for row in rows
            ],
        )


def limits(
    organization: Annotated[str, typer.Argument(help="The organisation's name.")],
    storage: Size = None,
    upload: Size = None,
    queued: Number = None,
    running: Number = None,
    streams: Number = None,
    requests_a_minute: Number = None,
    chat_tokens_a_day: Number = None,
    data_dir: OperatorFolder = None,
    as_json: AsJSON = False,
) -> None:
    """Set what an organisation may use, and show it.

    Sizes may have units, as 500GB has; 'default' is the installation's limit. Storage, requests a minute (of each key)
    and chat tokens a day do not limit where they are 0.
    """
    given = {
        "storage_bytes": storage,
        "upload_bytes": upload,
        "queued_jobs": queued,
        "running_jobs": running,
        "streams": streams,
        "requests_a_minute": requests_a_minute,
        "chat_tokens_a_day": chat_tokens_a_day,
    }
    changed = {
        name: None if value == DEFAULT else parsed(value, name) for name, value in given.items() if value is not None
    }
    use_database(data_dir)
    with transaction("troll_operator") as session:
        owner = accounts.organization_named(session, organization)
        if owner is None:
            raise CommandError(f"There is no organisation '{organization}'. 'troll admin organizations' lists them.")
        if changed:
            repository.set_limits(session, owner.id, changed)
        own = repository.limits(session, owner.id)
        merged, stored = service.merged(own), repository.stored_bytes(session, owner.id)
    if as_json:
        typer.echo(json.dumps({"organization": organization, **asdict(merged), "stored_bytes": stored}))
        return
    show_table(
        ("limit", "of this organisation", "set by"),
        [
            (
                name,
                shown_bytes(value) if name.endswith("bytes") else str(value),
                "installation" if getattr(own, name, None) is None else "organisation",
            )
            for name, value in asdict(merged).items()
        ],
    )
    typer.echo(f"{organization} stores {shown_bytes(stored)}.")


def _month(text: str | None) -> datetime:
    now = datetime.now(UTC)
    if text is None:
        return datetime(now.year, now.month, 1, tzinfo=UTC)
    match = re.fullmatch(r"(\d{4})-(\d{2})", text)
    if match is None or not 1 <= int(match[2]) <= 12 or int(match[1]) < 1970:
        raise CommandError(f"'{text}' is no month: give one such as {now:%Y-%m}.")
    return datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC)


def parsed(value: str, name: str) -> int:
    """A whole number, for sizes with a unit behind it if need be. Raises ``CommandError``."""
    match = re.fullmatch(r"(\d{1,15})(?:\.(\d{1,3}))?\s*([kmgt]?i?b)?", value.strip().lower())
    unit = match[3] or "" if match else ""
    is_size = name.endswith("bytes")
    if match is None or unit not in UNITS or (not is_size and (unit or match[2])) or (match[2] and not unit):
        wanted = "a size such as 500GB or 20GiB" if is_size else "a whole number"
        raise CommandError(f"'{value}' is no limit: give {wanted}, or '{DEFAULT}' for the installation's.")
    number: int = int(match[1]) * UNITS[unit] + int(match[2] or 0) * UNITS[unit] // 10 ** len(match[2] or "")
    if number >= 2**63:
        raise CommandError(f"'{value}' is more than can be counted.")
    return number
