"""``troll pull --format``, ``troll push`` and ``troll exports`` against a real API; a stub makes the exports."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from service.core import broker
from tests import factories
from tests.service.cli.conftest import Troll
from workers.control import exporter

WORK = """
import hashlib, json, pathlib, sys
order = json.load(sys.stdin)
folder = pathlib.Path(order["folder"])
folder.mkdir(parents=True)
(folder / "model.gguf").write_bytes(b"weights" * 1000)
print(json.dumps({"type": "bf16", "notes": ["mind this"], "bytes": 7000, "sha256": "0" * 64}), flush=True)
"""


@pytest.fixture
def model(models_dir: Path) -> str:
    return factories.offer_model(models_dir, "exported/model")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    work_by_a_stub(monkeypatch, tmp_path)


def work_by_a_stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have exports made at once by a process that writes a file and no model."""
    script = tmp_path / "work.py"
    script.write_text(WORK)
    monkeypatch.setattr(exporter, "COMMAND", ["python3", str(script)])
    monkeypatch.setattr(broker, "ring_exports", exporter.start)


def exports(troll: Troll, model: str) -> Any:
    return json.loads(troll("exports", "list", model, "--json").stdout)


@pytest.mark.usefixtures("worker")
def test_another_form_is_made_downloaded_and_not_kept(troll: Troll, model: str, tmp_path: Path) -> None:
    target = tmp_path / "gguf"
    pulled = troll("pull", model, "--format", "gguf", "-o", target)
    assert pulled.exit_code == 0, pulled.output
    assert [path.name for path in target.iterdir()] == ["model.gguf"]
    digest = hashlib.sha256((target / "model.gguf").read_bytes()).hexdigest()
    assert digest == hashlib.sha256(b"weights" * 1000).hexdigest()
    assert "Note: mind this" in pulled.stderr
    assert exports(troll, model) == []


def test_a_form_that_there_is_not_is_refused(troll: Troll, model: str, tmp_path: Path) -> None:
    pulled = troll("pull", model, "--format", "onnx", "-o", tmp_path / "onnx")
    assert pulled.exit_code == 1
    assert "huggingface" in pulled.output


def test_a_push_needs_a_token(troll: Troll, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    pushed = troll("push", model, "me/mine")
    assert pushed.exit_code == 1
    assert "Set HF_TOKEN" in pushed.output


def test_exports_are_listed_and_deleted(troll: Troll, model: str, monkeypatch: pytest.MonkeyPatch, client: Any) -> None:
    monkeypatch.setattr(broker, "ring_exports", lambda: None)
    made = client.post(f"/v1/models/{model}/exports", json={"format": "huggingface"}).json()["id"]
    assert [each["id"] for each in exports(troll, model)] == [made]
    assert troll("exports", "delete", model, made).stdout == f"{made}\n"
    assert exports(troll, model) == []
