"""What a client has already is not sent again."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from service.core.conditional import Conditional, etag, is_known

BODY = b'{"a":1}'


async def parts(request: Request) -> Response:
    async def both() -> AsyncIterator[bytes]:
        yield BODY[:3]
        yield BODY[3:]

    return StreamingResponse(both(), media_type="application/json")


ANSWERS: dict[str, Any] = {
    "json": lambda request: Response(BODY, media_type="application/json"),
    "failed": lambda request: JSONResponse({"error": {}}, 404),
    "own": lambda request: Response(BODY, media_type="application/json", headers={"etag": '"own"'}),
    "bytes": lambda request: Response(BODY, media_type="application/octet-stream"),
}


@pytest.fixture
def server() -> TestClient:
    routes = [Route(f"/{name}", make, methods=["GET", "POST"]) for name, make in ANSWERS.items()]
    app = Starlette(routes=[*routes, Route("/parts", parts)])
    app.add_middleware(Conditional)
    return TestClient(app)


def test_an_answer_is_tagged_by_its_bytes(server: TestClient) -> None:
    answer = server.get("/json")
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (200, BODY, etag(BODY))
    assert etag(BODY) != etag(b'{"a":2}')


@pytest.mark.parametrize("sent", ["{tag}", "{strong}", '"x", {tag}', "*", ' {tag} , W/"y"'])
def test_what_the_client_has_is_answered_with_nothing(server: TestClient, sent: str) -> None:
    tag = etag(BODY)
    answer = server.get("/json", headers={"if-none-match": sent.format(tag=tag, strong=tag.removeprefix("W/"))})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert not {"content-length", "content-type"} & answer.headers.keys()


@pytest.mark.parametrize("sent", ['"other"', "", "garbage", "W/", ",,,"])
def test_another_tag_gets_the_answer(server: TestClient, sent: str) -> None:
    assert server.get("/json", headers={"if-none-match": sent}).content == BODY


@pytest.mark.parametrize("name", ["failed", "bytes", "parts"])
def test_errors_bytes_and_streams_have_no_tag(server: TestClient, name: str) -> None:
    answer = server.get(f"/{name}", headers={"if-none-match": "*"})
    assert answer.status_code in (200, 404)
    assert answer.content
    assert "etag" not in answer.headers


def test_a_tag_of_its_own_is_kept(server: TestClient) -> None:
    assert server.get("/own", headers={"if-none-match": "*"}).headers["etag"] == '"own"'


def test_only_reading_is_conditional(server: TestClient) -> None:
    answer = server.post("/json", headers={"if-none-match": "*"})
    assert (answer.status_code, answer.content) == (200, BODY)
    assert "etag" not in answer.headers


def test_no_header_knows_nothing() -> None:
    assert not is_known(etag(BODY), None)
