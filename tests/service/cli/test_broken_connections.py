"""Following and pulling when the connection breaks: a server that keeps to a script stands in for a bad network."""

import io
import json
import tarfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from openai import OpenAI

from service.cli import following
from service.cli.failure import CommandError
from service.cli.following import events
from service.cli.models import download


class Script(ThreadingHTTPServer):
    """Answers each GET of a path with the next of its prepared bodies; the last one stays."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: dict[str, list[bytes]] = {}
        self.asked: list[str] = []
        self.announced_length: int | None = None

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
        if self.server.announced_length is not None:
            self.send_header("content-length", str(self.server.announced_length))
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


def archive(name: str = "config.json", kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.size, member.linkname = kind, 0 if kind != tarfile.REGTYPE else 2, "/etc/passwd"
        tar.addfile(member, io.BytesIO(b"{}"))
    return buffer.getvalue()


@pytest.mark.parametrize("keep", [100, 700, 1024])
def test_a_download_that_ends_early_leaves_nothing(server: Script, tmp_path: Path, keep: int) -> None:
    whole = archive()
    server.bodies, server.announced_length = {"/v1/models/m/archive": [whole[:keep]]}, len(whole)
    with pytest.raises(CommandError):
        download(server.client, "m", tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "body",
    [archive("../escape"), archive("/tmp/absolute"), archive("a/b"), archive("..")]
    + [archive("link", kind) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)],
)
def test_an_archive_that_reaches_elsewhere_is_refused(server: Script, tmp_path: Path, body: bytes) -> None:
    server.bodies = {"/v1/models/m/archive": [body]}
    with pytest.raises(CommandError, match="not a plain file name"):
        download(server.client, "m", tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []


def test_a_whole_archive_is_unpacked(server: Script, tmp_path: Path) -> None:
    server.bodies = {"/v1/models/m/archive": [archive()]}
    download(server.client, "m", tmp_path / "weights")
    assert (tmp_path / "weights" / "config.json").read_bytes() == b"{}"
