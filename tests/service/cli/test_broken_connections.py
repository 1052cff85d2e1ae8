"""Following when the connection breaks: a server that keeps to a script stands in for a bad network."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from openai import OpenAI

from service.cli import following
from service.cli.failure import CommandError
from service.cli.following import events


class Script(ThreadingHTTPServer):
    """Answers each GET of a path with the next of its prepared bodies; the last one stays."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: dict[str, list[bytes]] = {}
        self.asked: list[str] = []

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.server_port}/v1", api_key="sk-troll-x", max_retries=0)


class Handler(BaseHTTPRequestHandler):
    server: Script

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        bodies = self.server.bodies.get(self.path.partition("?")[0], [])
        if not bodies:
            self.send_error(503)
            return
        body = bodies.pop(0) if len(bodies) > 1 else bodies[0]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if "stream" in self.path else "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[Script]:
    server = Script()
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def frames(*numbers: int, done: bool = False) -> bytes:
    lines = [f"data: {json.dumps({'seq': n, 'type': 'message', 'message': str(n), 'data': None})}\n\n" for n in numbers]
    return (": ping\n\n" + "".join(lines) + ("data: [DONE]\n\n" if done else "")).encode()


def job(status: str) -> bytes:
    return json.dumps({"id": "ftjob-1", "object": "fine_tuning.job", "status": status}).encode()


def test_a_broken_stream_is_taken_up_after_the_last_event(server: Script) -> None:
    server.bodies = {
        "/v1/fine_tuning/jobs/ftjob-1/events": [frames(1, 2), frames(3), frames(4, 5, done=True), frames(done=True)],
        "/v1/fine_tuning/jobs/ftjob-1": [job("succeeded")],
    }
    assert [event["seq"] for event in events(server.client, "ftjob-1")] == [1, 2, 3, 4, 5]
    streams = [path.partition("?")[2] for path in server.asked if "events" in path]
    assert streams == ["stream=true", "stream=true&after=2", "stream=true&after=3", "stream=true&after=5"]


def test_silence_is_not_taken_for_the_end(server: Script) -> None:
    server.bodies = {
        "/v1/fine_tuning/jobs/ftjob-1/events": [frames(), frames(1), frames()],
        "/v1/fine_tuning/jobs/ftjob-1": [job("running"), job("succeeded")],
    }
    assert [event["seq"] for event in events(server.client, "ftjob-1")] == [1]


def test_a_server_that_stays_away_is_given_up(server: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "GIVE_UP_SECONDS", 0.0)
    with pytest.raises(CommandError, match="Lost the connection"):
        list(events(server.client, "ftjob-1"))
