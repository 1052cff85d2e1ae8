"""No input is a server error: odd ids, texts, numbers, forms and headers on every route, and what some of them get."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from service.settings import settings
from tests import factories
from tests.conftest import Key

JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=B"}
ODD_IDS = [
    "a" * 10_000,
    "a" * 300,
    "org/" + "b" * 300,
    "a/" * 100 + "b",
    "a%00b",
    "%2F",
    "..%2F..%2Fetc",
    "%FF%FE",
    "%ED%A0%80",
    "%C0%AF",
    "%F0%9F%98%80",
    "%0D%0Ax:1",
    "%",
    "%zz",
    "%25",
    "%20",
    "ft:" + "x" * 300,
    "x:ckpt-step-1",
    "ftjob-",
    "-1",
    "null",
    "[]",
    "'\"\\;",
    "*",
    "~",
]
ODD_QUERIES = [
    "limit=1e9",
    "limit=" + "9" * 30,
    "limit=-1",
    "limit=",
    "limit=%D9%A3",
    "limit=1&limit=2",
    "after=",
    "after=%00",
    "after=%ED%A0%80",
    "after=" + "a" * 9000,
    "after=999999999999999999",
    "metadata[a]=%00",
    "metadata[%00]=b",
    "metadata[]=",
    "metadata[a][b]=c",
    "metadata[" + "k" * 5000 + "]=1",
    "metadata[%ED%A0%80]=%F0",
    "purpose=%00",
    "order=x",
    "stream=maybe",
    "&&=&=",
]
ODD_BODIES = {
    "half": b'{"a": "\\ud800"}',
    "half-key": b'{"\\udfff": 1}',
    "raw-half": b'{"a": "\xed\xa0\x80"}',
    "deep": b'{"method": ' + b"[" * 400 + b"]" * 400 + b"}",
    "deeper": b"[" * 100_000,
    "deeper-object": b'{"a":' * 100_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "large": b'{"a": 1e999}',
    "twice": b'{"a": 1, "a": 2}',
    "wide": json.dumps({f"k{n}": 1 for n in range(5000)}).encode(),
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "bytes": bytes(range(256)),
    "blank": b"  ",
    "null": b"null",
    "text": b'"x"',
    "list": b"[]",
    "two": b"{}{}",
    "empty": b"",
}
ODD_HEADERS: list[dict[str, Any]] = [
    {"idempotency-key": "x" * 256},
    {"idempotency-key": b"\xff"},
    {"idempotency-key": b"\x00"},
    {"idempotency-key": ""},
    {"x-stainless-retry-count": b"\xb2"},
    {"openai-organization": b"\xff\x00"},
    {"content-length": "9" * 5000},
    {"content-length": b"\xb2"},
    {"host": "["},
    {"host": b"\xff"},
    {"range": "bytes=" + "9" * 30 + "-"},
    {"range": b"bytes=\xb2-"},
    {"range": "bytes=-0"},
    {"if-range": b"\xff"},
    {"content-type": b"\xe9/\xe9"},
    {"content-type": "application/json; charset=utf-16"},
    {"content-type": "multipart/form-data"},
]


def operations() -> list[tuple[str, str]]:
    from service.app import create_app

    paths = create_app().openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def at(path: str, id: str) -> str:
    """``path`` with each of its parameters replaced."""
    return "/".join(id if part.startswith("{") else part for part in path.split("/"))


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch, database: object) -> Iterator[None]:
    monkeypatch.setenv("TROLL_REQUESTS_PER_MINUTE", "0")
    settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.cache_clear()


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize(("method", "path"), operations(), ids=lambda part: part)
def test_nothing_odd_is_a_server_error(client: TestClient, method: str, path: str) -> None:
    failed: list[tuple[str, str]] = []

    def send(what: str, url: str, **options: Any) -> None:
        answer = client.request(method, url, **options)
        if answer.status_code >= 500 or (answer.status_code >= 400 and "error" not in answer.json()):
            failed.append((what, answer.text[:200]))

    for id in ODD_IDS if "{" in path else []:
        send(f"id {id[:40]}", at(path, id), **({"json": {}} if method == "POST" else {}))
    for query in ODD_QUERIES if method == "GET" else []:
        send(f"query {query[:40]}", f"{at(path, 'x')}?{query}")
    for name, body in ODD_BODIES.items() if method == "POST" else []:
        send(f"body {name}", at(path, "x"), content=body, headers=JSON)
    for headers in ODD_HEADERS:
        content: dict[str, Any] = {"content": b"{}"} if method == "POST" else {}
        send(f"headers {headers!r:.60}", at(path, "x"), headers=JSON | headers, **content)
    assert not failed


# What some of them get

HALF = b'"\\ud800"'
GRADER = b'{"type": "string_check", "name": "n", "operation": "eq", "input": "a", "reference": %s}'
HOOK = b'{"name": %s, "url": "https://example.com/", "event_types": ["fine_tuning.job.failed"]}'
CASES: dict[str, tuple[str, bytes, dict[str, str], str, str | None]] = {
    "half in a grader": (
        "/v1/fine_tuning/alpha/graders/validate",
        b'{"grader": ' + GRADER % HALF + b"}",
        JSON,
        "invalid_json",
        "grader.reference",
    ),
    "half in an item": (
        "/v1/fine_tuning/alpha/graders/run",
        b'{"grader": ' + GRADER % b'"a"' + b', "model_sample": "", "item": {"a": ["b", ' + HALF + b"]}}",
        JSON,
        "invalid_json",
        "item.a.1",
    ),
    "half in metadata": (
        "/v1/fine_tuning/jobs",
        b'{"model": "m", "training_file": "f", "metadata": {"k": ' + HALF + b"}}",
        JSON,
        "invalid_json",
        "metadata.k",
    ),
    "method nested deep": (
        "/v1/fine_tuning/jobs",
        b'{"model": "m", "training_file": "f", "method": ' + b'{"a":' * 400 + b"1" + b"}" * 400 + b"}",
        JSON,
        "invalid_json",
        None,
    ),
    "a NUL that is stored": ("/v1/webhook_endpoints", HOOK % b'"a\\u0000b"', JSON, "invalid_value", "name"),
    "no content type": ("/v1/webhook_endpoints", HOOK % b'"a"', {}, "unsupported_content_type", None),
    "another content type": (
        "/v1/webhook_endpoints",
        HOOK % b'"a"',
        {"content-type": "text/plain"},
        "unsupported_content_type",
        None,
    ),
    "nothing": ("/v1/webhook_endpoints", b"", JSON, "missing_body", None),
    "nothing, unsaid": ("/v1/webhook_endpoints", b"", {}, "missing_body", None),
    "a list": ("/v1/webhook_endpoints", b"[]", JSON, "invalid_value", None),
    "no model's id": (
        "/v1/fine_tuning/jobs",
        b'{"model": "org/' + b"x" * 252 + b'", "training_file": "f"}',
        JSON,
        "invalid_value",
        "model",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_refusal_says_what_and_where(client: TestClient, case: str) -> None:
    url, body, headers, code, param = CASES[case]
    answer = client.post(url, content=body, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param), error


@pytest.mark.parametrize(
    ("body", "headers", "says"),
    [
        (HOOK % b'"a"', {}, "send the header Content-Type: application/json"),
        (b"", {}, "The request needs a JSON body."),
        (b"5", JSON, "The request body must be a JSON object."),
    ],
)
def test_bodies_that_are_none_are_told_in_words(
    client: TestClient, body: bytes, headers: dict[str, str], says: str
) -> None:
    assert says in client.post("/v1/webhook_endpoints", content=body, headers=headers).json()["error"]["message"]


def test_a_suffix_is_told_its_characters(client: TestClient) -> None:
    body = {"model": "m", "training_file": "f", "suffix": "my model"}
    error = client.post("/v1/fine_tuning/jobs", json=body).json()["error"]
    assert error["param"] == "suffix"
    assert "use only the letters A to Z and a to z, digits, '.', '_' and '-', and no spaces" in error["message"]


@pytest.mark.parametrize(
    ("field", "value", "param", "says"),
    [
        (
            "messages",
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
            "messages.0.content.0.type",
            "models here read text only, no 'image_url'",
        ),
        ("messages", [{"role": "user", "content": 5}], "messages.0.content", "a string or a list"),
        ("messages", [1] * 300_000, "messages.0", "should be an object"),
        ("stop", [1] * 300_000, "stop.0", "should be a string"),
        ("tools", [{"type": "function"}], "tools.0.function", "Missing required parameter"),
        ("nonsense", 1, "nonsense", "Unknown parameter"),
    ],
)
def test_a_chat_is_told_the_field_that_was_sent(
    client: TestClient, field: str, value: Any, param: str, says: str
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | {field: value}
    error = client.post("/v1/chat/completions", json=body).json()["error"]
    assert (error["param"], says in error["message"]) == (param, True), error


@pytest.mark.parametrize("length", [255, 256, 1000])
def test_a_part_of_a_models_id_may_be_longer_than_a_name_of_a_file(client: TestClient, length: int) -> None:
    for id in ("x" * length, "org/" + "x" * length):
        assert client.get(f"/v1/models/{id}").status_code == 404
        assert client.delete(f"/v1/models/{id}").status_code == 404
        assert client.get(f"/v1/models/{id}/archive").status_code == 404


# Forms


def part(disposition: bytes, body: bytes) -> bytes:
    return b"--B\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + body + b"\r\n"


ROWS = factories.jsonl(factories.rows(2))
FILE = part(b'name="file"; filename="rows.jsonl"', ROWS)
PURPOSE = part(b'name="purpose"', b"fine-tune")
END = b"--B--\r\n"
ANCHOR = part(b'name="expires_after[anchor]"', b"created_at")
FORMS: dict[str, tuple[bytes, int]] = {
    "whole": (FILE + PURPOSE + END, 200),
    "no file name": (part(b'name="file"; filename=""', ROWS) + PURPOSE + END, 200),
    "file name with a line's end": (part(b'name="file"; filename="a%0D%0Ab"', ROWS) + PURPOSE + END, 200),
    "file name of dots": (part(b'name="file"; filename=".."', ROWS) + PURPOSE + END, 200),
    "long file name": (part(b'name="file"; filename="' + b"n" * 3000 + b'"', ROWS) + PURPOSE + END, 200),
    "file name of bytes": (part(b'name="file"; filename="\xff\xed\xa0\x80"', ROWS) + PURPOSE + END, 200),
    "file name with a NUL": (part(b'name="file"; filename="a\x00b"', ROWS) + PURPOSE + END, 400),
    "two files": (FILE + FILE + PURPOSE + END, 400),
    "text for a file": (part(b'name="file"', ROWS) + PURPOSE + END, 400),
    "file for a text": (FILE + part(b'name="purpose"; filename="p"', b"fine-tune") + END, 400),
    "text with a NUL": (FILE + part(b'name="purpose"', b"fine\x00tune") + END, 400),
    "text of bytes": (FILE + part(b'name="purpose"', b"\xff\xfe") + END, 400),
    "huge text": (FILE + part(b'name="purpose"', b"x" * 2_000_000) + END, 400),
    "many texts": (b"".join(part(b'name="x%d"' % n, b"") for n in range(50)) + END, 400),
    "no name": (part(b'filename="x"', ROWS) + END, 400),
    "no end": (FILE + PURPOSE, 400),
    "cut": (FILE[:60], 400),
    "other boundary": (FILE.replace(b"--B", b"--C") + END, 400),
    "nothing": (b"", 400),
    "years": (FILE + PURPOSE + ANCHOR + part(b'name="expires_after[seconds]"', b"9" * 5000) + END, 400),
    "digits": (FILE + PURPOSE + ANCHOR + part(b'name="expires_after[seconds]"', "²".encode()) + END, 400),
    "seconds alone": (FILE + PURPOSE + part(b'name="expires_after[seconds]"', b"7200") + END, 400),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_taken_or_refused(client: TestClient, form: str) -> None:
    body, status = FORMS[form]
    answer = client.post("/v1/files", content=body, headers=FORM)
    assert answer.status_code == status, answer.text
    if status == 200:
        id = answer.json()["id"]
        assert client.get(f"/v1/files/{id}/content").content == ROWS


@pytest.mark.parametrize("charset", ["punycode", "undefined", "raw_unicode_escape", "utf-7", "idna", "a\tb", "hex"])
def test_a_form_in_another_character_set_is_refused(client: TestClient, charset: str) -> None:
    headers = {"content-type": f'multipart/form-data; boundary=B; charset="{charset}"'}
    answer = client.post("/v1/files", content=FILE + PURPOSE + END, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_content_type")


@pytest.mark.parametrize("type", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; x"])
def test_a_form_without_a_boundary_is_refused(client: TestClient, type: str) -> None:
    answer = client.post("/v1/files", content=FILE + PURPOSE + END, headers={"content-type": type})
    assert answer.status_code == 400, answer.text


def test_a_client_that_hangs_up_while_it_sends_is_no_server_error(
    client_for: Callable[[Key | None], TestClient], api_key: Key
) -> None:
    import asyncio

    from service.app import create_app

    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"authorization": f"Bearer {api_key.plain}", **FORM}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/files",
        "raw_path": quote("/v1/files").encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("192.0.2.1", 1),
        "server": ("x", 80),
        "scheme": "http",
        "http_version": "1.1",
    }
    asyncio.run(create_app()(scope, receive, send))
    assert [message["status"] for message in sent if message["type"] == "http.response.start"] == [499]
