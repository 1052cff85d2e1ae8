"""Pushing to a hub: a small one stands in, and speaks what huggingface_hub asks of it."""

import base64
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from workers.processes import scrubbed_environment

TOKEN = "hf_right"


class Hub:
    """Keeps what is pushed. ``files`` are by repository and name."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.private: dict[str, bool] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.headers.get("authorization") != f"Bearer {TOKEN}":
                    return self._answer({"error": "no such token"}, 401)
                self._answer(hub.post(self.path, body, self.headers["host"]))
                return None

            def do_PUT(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                hub.objects[self.path.rpartition("/")[2]] = content
                self._answer({})

            def do_GET(self) -> None:
                self._answer({"error": "none"}, 404)

            do_HEAD = do_GET

            def _answer(self, content: Any, status: int = 200) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def post(self, path: str, body: bytes, host: str) -> Any:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.private[name] = asked["visibility"] == "private"
            return {"url": f"{self.url}/{name}"}
        if path.endswith("/preupload/main"):
            large = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith("gguf") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return {"files": large}
        if path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            upload = [
                {**each, "actions": {"upload": {"href": f"http://{host}/lfs/{each['oid']}", "header": {}}}}
                for each in asked
            ]
            return {"transfer": "basic", "objects": upload}
        if path.endswith("/commit/main"):
            repository = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in body.splitlines():
                self._commit(repository, json.loads(line))
            return {"commitUrl": f"{self.url}/{repository}/commit/abc", "commitOid": "abc", "success": True}
        return {}

    def _commit(self, repository: str, line: dict[str, Any]) -> None:
        value = line["value"]
        if line["key"] == "file":
            self.files[repository, value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            self.files[repository, value["path"]] = self.objects[value["oid"]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    running = Hub()
    yield running
    running.server.shutdown()
    running.server.server_close()


def push(folder: Path, url: str, token: str = TOKEN) -> tuple[dict[str, Any], str]:
    """What pushing came to, and all that its process printed."""
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from workers.errors import RunError\n"
        "from workers.exporting import hub\n"
        "order = json.load(sys.stdin)\n"
        "try:\n"
        "    print(json.dumps(hub.push(Path(order.pop('folder')), **order)))\n"
        "except RunError as error:\n"
        "    print(json.dumps({'code': error.code, 'message': error.message}))\n"
    )
    order = {"folder": str(folder), "url": url, "token": token, "repository": "me/mine", "private": True}
    # As the worker starts it; the library reads its surroundings when it is imported.
    environment = scrubbed_environment() | {"HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(order), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir()
    (made / "model.gguf").write_bytes(bytes(range(256)) * 100)
    (made / "Modelfile").write_text("FROM ./model.gguf\n")
    return made


def test_what_is_pushed_is_there(hub: Hub, folder: Path) -> None:
    told, printed = push(folder, hub.url)
    assert told == {"url": f"{hub.url}/me/mine", "revision": "abc"}
    assert hub.private == {"me/mine": True}
    assert hub.files == {("me/mine", path.name): path.read_bytes() for path in folder.iterdir()}
    assert {hashlib.sha256(content).hexdigest() for content in hub.objects.values()} == set(hub.objects)
    assert TOKEN not in printed


def test_a_token_that_the_hub_does_not_know_is_told_and_not_shown(hub: Hub, folder: Path) -> None:
    told, printed = push(folder, hub.url, "hf_wrong")
    assert told["code"] == "hub_refused"
    assert "does not know the token" in told["message"]
    assert "hf_wrong" not in printed


def test_a_hub_that_is_not_there_is_told(folder: Path) -> None:
    told, _ = push(folder, "http://127.0.0.1:9")
    assert told["code"] == "hub_unreachable"
