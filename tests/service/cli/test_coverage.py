"""Whether every operation of the API has a command: commands are run, and what they ask is held against the routes."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import typer
import yaml
from openai import OpenAI
from typer.testing import Result

from service.accounts.service import KeyOwner, make_key
from service.app import create_app
from service.cli import app, files, following
from service.core.db import transaction
from tests import factories
from tests.service.cli import test_exports
from tests.workers.conftest import use_stub
from workers.jobs import supervisor

Troll = Callable[..., Result]
ELSEWHERE = {
    "GET /v1/models/{model}/archive": "'troll pull' fetches the same, and goes on where a connection broke",
    "GET /v1/models/{model}/exports/{export_id}/content": "'troll pull --format' fetches the same, likewise",
    "POST /v1/responses": "'troll chat' asks the same model the same",
    "GET /healthz": "for load balancers",
    "GET /readyz": "for load balancers",
}
"""Operations without a command, and what there is instead."""
ADMINISTRATION = "/v1/organization/"
"""Operations under it, which need an admin key, are those of 'troll api' but for what 'troll usage' shows."""


SAY_NO_MORE = {
    *("up", "down", "demo"),
    *("pull", "push", "exports delete", "report", "tensorboard", "files content"),
    *("chat", "api"),
    *("keys scopes", "keys revoke", "workers drain", "workers resume"),
    *("admin delete", "admin weight", "admin budget", "admin projects create", "admin projects archive"),
    *("admin users add", "admin users remove", "admin operators add", "admin operators remove"),
}
"""Commands that print a sentence, an id, a file or JSON anyhow."""


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, each in getattr(command, "commands", {}).items():
        yield from leaves(each, (*path, name))
    if not hasattr(command, "commands"):
        yield " ".join(path), command


def test_commands_that_print_data_print_json() -> None:
    without = {
        name
        for name, command in leaves(typer.main.get_command(app))
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == SAY_NO_MORE


@pytest.mark.parametrize(
    ("status", "code"), [("succeeded", 0), ("failed", 3), ("cancelled", 4)], ids=["succeeded", "failed", "cancelled"]
)
def test_the_exit_code_says_how_a_job_ended(
    troll: Troll, monkeypatch: pytest.MonkeyPatch, status: str, code: int
) -> None:
    ended = SimpleNamespace(status=status, error=None, fine_tuned_model="ft:m")
    monkeypatch.setattr(following, "show", lambda *_: ended)
    assert troll("follow", "ftjob-1").exit_code == code


def test_a_command_that_is_called_wrongly_ends_with_two(troll: Troll) -> None:
    assert [troll(*call).exit_code for call in (("jobs", "shw"), ("compare", "ftjob-1"), ("follow",))] == [2, 2, 2]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Methods and paths of all requests. Those that workers answer are refused at once: there are none here."""
    seen: set[tuple[str, str]] = set()
    real = httpx2.Client.send

    def send(self: httpx2.Client, request: httpx2.Request, **options: Any) -> httpx2.Response:
        seen.add((request.method, request.url.path))
        if request.url.path.endswith(("/completions", "/graders/run", "/test")) and request.method == "POST":
            refusal = {"error": {"message": "no worker", "code": "no_worker"}}
            return httpx2.Response(503, headers={"x-should-retry": "false"}, json=refusal, request=request)
        return real(self, request, **options)

    monkeypatch.setattr(httpx2.Client, "send", send)
    return seen


def operations() -> dict[str, re.Pattern[str]]:
    """Each with what its path looks like."""
    paths = create_app().openapi()["paths"]
    return {
        f"{method.upper()} {path}": re.compile(re.sub(r"\\{\w+\\}", "[^/]+(?:/[^/]+)?", re.escape(path)))
        for path, item in paths.items()
        for method in item
    }


def test_every_operation_has_a_command(
    troll: Troll,
    asked: set[tuple[str, str]],
    api_key: Any,
    client: Any,
    tmp_path: Path,
    models_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*arguments: Any) -> Any:
        """What a command prints, as JSON if it is; nothing where a worker would have to answer."""
        result = troll(*arguments)
        assert result.exit_code == 0 or "(HTTP 503)" in result.stderr, (arguments, result.output)
        return json.loads(result.stdout) if result.stdout.startswith(("{", "[")) else result.stdout.strip()

    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(factories.jsonl(factories.rows(8)))
    model = factories.offer_model(models_dir)
    job_file = tmp_path / "job.yaml"
    body = {"model": model, "training_file": "rows.jsonl", "validation_file": "rows.jsonl"}
    job_file.write_text(yaml.safe_dump(body | {"method": factories.method()}))
    use_stub(monkeypatch)

    job = run("submit", job_file)
    supervisor.run("worker-1")
    for command in ("list", "show JOB", "events JOB", "checkpoints JOB"):
        run("jobs", *command.replace("JOB", job).split(), "--json")
    followed = [json.loads(line) for line in troll("follow", job, "--json").stdout.splitlines()]
    assert [event["seq"] for event in followed] == list(range(1, len(followed) + 1))
    run("report", job, "-o", tmp_path / "report.html")
    run("tensorboard", job, "-o", tmp_path / "runs")
    tuned = run("jobs", "show", job, "--json")["fine_tuned_model"]
    waiting = run("submit", job_file)
    for verb in ("pause", "resume", "cancel"):
        run("jobs", verb, waiting, "--json")

    small = run("files", "upload", rows)
    monkeypatch.setattr(files, "LARGE_BYTES", 100)
    assert run("files", "upload", rows, "--json")["bytes"] == rows.stat().st_size
    assert run("files", "list", "--json")
    assert run("files", "show", small, "--json")["id"] == small
    run("files", "content", small, "-o", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == rows.read_bytes()
    assert run("files", "delete", small, "--json")["deleted"] is True
    rows.write_text("no JSON\n" * 30)
    assert troll("files", "upload", rows).exit_code == 1

    run("graders", "validate", job_file, "--json")
    run("graders", "run", job_file, "46", "--item", '{"answer": "46"}', "--json")
    run("chat", model, "12+34=")
    run("chat", model, "12+34=", "--raw")

    made = run("webhooks", "create", "mine", "https://example.com/", "--json")["id"]
    for command in ("events", "list", "show ID", "update ID --name other", "rotate-secret ID", "test ID", "delete ID"):
        run("webhooks", *command.replace("ID", made).split(), "--json")

    run("models", "list", "--json")
    run("models", "show", model, "--json")
    run("pull", tuned, "-o", tmp_path / "weights")
    test_exports.work_by_a_stub(monkeypatch, tmp_path)
    run("pull", tuned, "-o", tmp_path / "exported", "--format", "huggingface")
    run("exports", "list", tuned, "--json")
    with transaction("troll_operator") as session:
        admin, _ = make_key(session, KeyOwner(api_key.organization_id, None), name="administers")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", admin)
    other = run("api", "POST", "organization/projects", "--body", '{"name": "other"}')["id"]
    assert other in troll("api", "get", "v1/organization/projects", "-q", "limit=5").stdout
    run("usage", "--json")
    (share,) = run("models", "share", tuned, other, "--json")
    assert run("models", "shares", tuned, "--json") == [share]
    run("models", "unshare", tuned, share["id"], "--json")
    assert run("models", "delete", tuned, "--json")["deleted"] is True

    known = operations()
    reached = {
        name
        for name, pattern in known.items()
        for method, path in asked
        if name.startswith(method + " ") and pattern.fullmatch(path)
    }
    missing = {name for name in known if name not in reached and ADMINISTRATION not in name}
    assert missing == set(ELSEWHERE)


def test_a_large_file_that_is_refused_leaves_no_upload_behind(
    troll: Troll, base_url: str, api_key: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGE_BYTES", 100)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("no JSON\n" * 30)
    result = troll("files", "upload", rows)
    assert result.exit_code == 1, result.output
    assert "30 of 30 lines are invalid" in result.stderr
    assert OpenAI(base_url=base_url, api_key=api_key.plain).files.list().data == []
