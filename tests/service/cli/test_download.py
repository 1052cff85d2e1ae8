"""Pulling a model over a network that breaks: a proxy in front of the real API cuts what it forwards, and counts it."""

import contextlib
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from openai import OpenAI

from service.cli import download as downloading
from service.cli.download import download
from service.cli.failure import CommandError
from tests import factories
from tests.conftest import Key

WEIGHTS = bytes(range(256)) * 8192


HEADERS = 20_000
"""More than all headers of a download come to."""


class Proxy:
    """Forwards to ``target`` until ``budget`` bytes have come back; then it cuts, and refuses what comes."""

    def __init__(self, target: str) -> None:
        self.forwarded, self.budget = 0, 1 << 40
        self._target = urlsplit(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.forwarded >= self.budget:
                client.close()
                continue
            server = socket.create_connection((self._target.hostname, self._target.port))
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(65536):
                if counted:
                    data = data[: max(0, self.budget - self.forwarded)]
                    self.forwarded += len(data)
                sink.sendall(data)
                if counted and self.forwarded >= self.budget:
                    break
        except OSError:
            pass
        finally:
            for end in (source, sink) if counted else ():
                # The other direction waits on them: closing alone would leave them open.
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "WAIT_SECONDS", 0.01)


@pytest.fixture
def proxy(base_url: str) -> Iterator[Proxy]:
    running = Proxy(base_url)
    yield running
    running.close()


@pytest.fixture
def client(proxy: Proxy, api_key: Key) -> OpenAI:
    return OpenAI(base_url=proxy.base_url, api_key=api_key.plain, max_retries=0)


@pytest.fixture
def model(models_dir: Path) -> str:
    name = factories.offer_model(models_dir, "tiny/large")
    (models_dir / name / "model.safetensors").write_bytes(WEIGHTS)
    (models_dir / name / "adapter").mkdir(exist_ok=True)
    for twin in ("adapter_config.json", "adapter_model.safetensors"):
        (models_dir / name / "adapter" / twin).write_text("the same")
    return name


def cut(proxy: Proxy, client: OpenAI, model: str, target: Path, after: int = 1_000_000) -> int:
    """A pull that breaks. Returns how many bytes it leaves."""
    proxy.budget = proxy.forwarded + after
    with pytest.raises(CommandError, match="Run the command again to go on"):
        download(client, model, target)
    proxy.forwarded, proxy.budget = 0, 1 << 40
    assert not target.exists()
    return sum(path.stat().st_size for path in target.with_name(f".{target.name}.partial").iterdir())


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_whole(folder: Path, models_dir: Path, model: str) -> None:
    assert files_of(folder) == files_of(models_dir / model)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_pull_that_was_cut_fetches_only_the_rest(
    proxy: Proxy, client: OpenAI, model: str, models_dir: Path, tmp_path: Path
) -> None:
    kept = cut(proxy, client, model, tmp_path / "weights")
    assert 500_000 < kept < len(WEIGHTS)
    download(client, model, tmp_path / "weights")
    assert_whole(tmp_path / "weights", models_dir, model)
    assert len(WEIGHTS) - kept < proxy.forwarded < len(WEIGHTS) - kept + HEADERS


def test_a_pull_mends_short_cuts_by_itself(
    proxy: Proxy, client: OpenAI, model: str, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heal(_: float) -> None:
        proxy.budget += 700_000

    monkeypatch.setattr("service.cli.download.time.sleep", heal)
    proxy.budget = 500_000
    download(client, model, tmp_path / "weights")
    assert_whole(tmp_path / "weights", models_dir, model)
    assert proxy.forwarded < len(WEIGHTS) + HEADERS


def test_a_file_that_changed_meanwhile_begins_anew(
    proxy: Proxy, client: OpenAI, model: str, models_dir: Path, tmp_path: Path
) -> None:
    cut(proxy, client, model, tmp_path / "weights")
    (models_dir / model / "model.safetensors").write_bytes(WEIGHTS[::-1])
    download(client, model, tmp_path / "weights")
    assert_whole(tmp_path / "weights", models_dir, model)
    assert proxy.forwarded > len(WEIGHTS)


def test_a_damaged_part_is_found_and_fetched_again(
    proxy: Proxy, client: OpenAI, model: str, models_dir: Path, tmp_path: Path
) -> None:
    cut(proxy, client, model, tmp_path / "weights")
    (part,) = (path for path in (tmp_path / ".weights.partial").iterdir() if path.stat().st_size > 1000)
    with part.open("r+b") as file:
        file.write(b"damaged")
    download(client, model, tmp_path / "weights")
    assert_whole(tmp_path / "weights", models_dir, model)


def test_what_is_left_of_another_model_is_not_used(
    proxy: Proxy, client: OpenAI, model: str, models_dir: Path, tmp_path: Path
) -> None:
    cut(proxy, client, model, tmp_path / "weights")
    other = factories.offer_model(models_dir, "tiny/other")
    download(client, other, tmp_path / "weights")
    assert_whole(tmp_path / "weights", models_dir, other)


def test_two_pulls_do_not_fill_one_folder(client: OpenAI, model: str, tmp_path: Path) -> None:
    (tmp_path / ".weights.partial").mkdir()
    descriptor = os.open(tmp_path / ".weights.partial", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(CommandError, match="another 'troll pull'"):
        download(client, model, tmp_path / "weights")
    os.close(descriptor)


@pytest.mark.parametrize("name", ["../escape", "/tmp/absolute", "a/b/c", "a/..", "..", ""])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    listing = json.dumps({"data": [{"name": name, "bytes": 2, "sha256": "0" * 64}]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(listing)))
            self.end_headers()
            self.wfile.write(listing)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        hostile = OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="x")
        with pytest.raises(CommandError, match="not a plain file name"):
            download(hostile, "m", tmp_path / "weights")
        server.shutdown()
    assert list(tmp_path.iterdir()) == []
