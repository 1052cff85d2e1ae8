"""The operator's folder of base models: what is offered, what is broken, and what a list costs."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from service.cli import app as troll
from service.models import base
from tests import factories

NOBODY = 65534


def write(folder: Path, config: bytes) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").write_bytes(config)


def replace(folder: Path, make: Callable[[Path], object]) -> None:
    (folder / "config.json").unlink()
    make(folder / "config.json")


def pipe_for_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "number": (lambda at: write(at, b"5"), "its config.json is not a JSON object"),
    "null": (lambda at: write(at, b"null"), "its config.json is not a JSON object"),
    "list": (lambda at: write(at, b'["auto_map"]'), "its config.json is not a JSON object"),
    "text": (lambda at: write(at, b'"auto_map"'), "its config.json is not a JSON object"),
    "empty": (lambda at: write(at, b""), "its config.json is not valid JSON"),
    "cut": (lambda at: write(at, b'{"a": '), "its config.json is not valid JSON"),
    "binary": (lambda at: write(at, bytes(range(256))), "its config.json is not valid JSON"),
    "nested": (lambda at: write(at, b"[" * 100_000), "its config.json is not valid JSON"),
    "nested-object": (lambda at: write(at, b'{"a":' * 100_000), "its config.json is not valid JSON"),
    "digits": (lambda at: write(at, b'{"a": ' + b"9" * 5000 + b"}"), "its config.json is not valid JSON"),
    "huge": (lambda at: write(at, b" " * (base.MAX_CONFIG_BYTES + 1)), "its config.json has more than 4194304 bytes"),
    "custom": (lambda at: write(at, b'{"auto_map": {}}'), "its config.json asks for custom code (auto_map)"),
    "folder": (lambda at: replace(at, Path.mkdir), "its config.json is no file"),
    "pipe": (lambda at: replace(at, os.mkfifo), "its config.json is no file"),
    "device": (lambda at: replace(at, lambda path: path.symlink_to("/dev/zero")), "its config.json is no file"),
    "dangling": (
        lambda at: replace(at, lambda path: path.symlink_to("nowhere")),
        "its config.json cannot be read: No such file or directory",
    ),
    "circle": (
        lambda at: replace(at, lambda path: path.symlink_to("config.json")),
        "its config.json cannot be read: Too many levels of symbolic links",
    ),
    "code": (lambda at: (at / "modeling.py").touch(), "it holds files that could run code: modeling.py"),
    "weightless": (lambda at: (at / "model.safetensors").unlink(), "it holds no safetensors weights"),
    "pipe-for-weights": (
        pipe_for_weights,
        "it holds no safetensors weights",
    ),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of models with a good one."""
    factories.offer_model(tmp_path, "org/good")
    return tmp_path


def survey(root: Path) -> tuple[list[str], dict[str, str]]:
    offered, broken = base.survey(root)
    return [model.id for model in offered], {each.id: each.reason for each in broken}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_folder_is_listed_as_broken(root: Path, kind: str) -> None:
    spoil, reason = BREAKS[kind]
    spoil(root / factories.offer_model(root, f"org/{kind}"))
    assert survey(root) == (["org/good"], {f"org/{kind}": reason})


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_folder_breaks_no_answer(client: TestClient, models_dir: Path, kind: str) -> None:
    name = factories.offer_model(models_dir, f"broken/{kind}")
    BREAKS[kind][0](models_dir / name)
    try:
        listed = client.get("/v1/models")
        assert listed.status_code == 200
        assert name not in [model["id"] for model in listed.json()["data"]]
        assert client.get(f"/v1/models/{name}").status_code == 404
        job = factories.job_body(client, name)
        assert client.post("/v1/fine_tuning/jobs", json=job).status_code == 400
    finally:
        shutil.rmtree(models_dir / "broken")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("path", ["org/closed", "org/closed/config.json"])
def test_what_may_not_be_read_is_broken(root: Path, path: str) -> None:
    factories.offer_model(root, "org/closed")
    for folder in root.parents:
        if folder.owner() == "root" and "pytest" in str(folder):
            folder.chmod(0o755)
    for part in [root, *root.rglob("*")]:
        part.chmod(0o755)
    (root / path).chmod(0)
    os.seteuid(NOBODY)
    try:
        offered, broken = survey(root)
    finally:
        os.seteuid(0)
    assert offered == ["org/good"]
    assert list(broken) == ["org/closed"]
    assert "Permission denied" in broken["org/closed"]


def test_names_that_no_request_can_give_are_broken(root: Path) -> None:
    for name in (b"\xff\xfe", b"new\nline", b"\xed\xa0\x80"):
        factories.offer_model(root, os.fsdecode(name))
    deep = "/".join("n" * 200 for _ in range(2))
    factories.offer_model(root, deep)
    offered, broken = survey(root)
    assert offered == ["org/good"]
    unprintable = "its name holds bytes that are no UTF-8, or characters that cannot be printed"
    assert {"\\udcff\\udcfe": unprintable, "new\\nline": unprintable}.items() <= broken.items()
    assert broken[deep] == "its name has more than 255 characters"
    assert json.dumps(broken).encode()


def test_a_folder_that_vanishes_meanwhile_is_neither(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factories.offer_model(root, "org/brief")
    read = base._read

    def vanish(path: str) -> object:
        if path.endswith("brief"):
            shutil.rmtree(path)
        return read(path)

    monkeypatch.setattr(base, "_read", vanish)
    assert survey(root) == (["org/good"], {})


def test_a_year_that_is_none_is_no_harm(root: Path) -> None:
    os.utime(root / "org/good/config.json", (0, 2**40))
    assert survey(root)[0] == ["org/good"]


def test_links_to_folders_are_followed_and_circles_end(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    factories.offer_model(elsewhere, "linked")
    (root / "far").symlink_to(elsewhere)
    (root / "org" / "circle").symlink_to(root / "org")
    (root / "nowhere").symlink_to("nothing")
    offered, broken = survey(root)
    assert {"far/linked", "org/good"} <= set(offered)
    assert broken == {}


@pytest.mark.parametrize("missing", ["nothing", "a-file"])
def test_a_missing_folder_of_models_has_none(tmp_path: Path, missing: str) -> None:
    (tmp_path / "a-file").touch()
    assert survey(tmp_path / missing) == ([], {})


# What it costs


@pytest.fixture
def settled(root: Path) -> Path:
    """The same folder, changed long ago."""
    for path in [*root.rglob("*"), root]:
        os.utime(path, (10**9, 10**9))
    return root


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was opened since."""
    paths: list[str] = []
    read = base._read

    def noted(path: str) -> Any:
        paths.append(Path(path).name)
        return read(path)

    monkeypatch.setattr(base, "_read", noted)
    return paths


def test_nothing_is_read_twice(settled: Path, opened: list[str]) -> None:
    first = survey(settled)
    assert sorted(opened) == sorted(["good", "org", settled.name])
    opened.clear()
    assert survey(settled) == first
    assert opened == []


def test_a_changed_config_is_read_again(settled: Path, opened: list[str]) -> None:
    survey(settled)
    (settled / "org/good/config.json").write_text("5")
    opened.clear()
    assert survey(settled) == ([], {"org/good": "its config.json is not a JSON object"})
    assert opened == ["good"]


def test_a_file_that_came_is_seen(settled: Path) -> None:
    survey(settled)
    (settled / "org/good/weights.pkl").touch()
    assert survey(settled)[0] == []


def test_what_changed_a_moment_ago_may_change_again(root: Path) -> None:
    config = root / "org/good/config.json"
    state = config.stat()
    survey(root)
    config.write_text('{"model_type": "qwen2"}'.replace("qwen2", "auto_map")[: state.st_size])
    os.utime(config, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert survey(root)[0] == []


# Who is told


def test_the_log_tells_of_a_change_once(client: TestClient, models_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = models_dir / factories.offer_model(models_dir, "told/once")
    caplog.set_level(logging.INFO, base.__name__)

    def told() -> list[str]:
        assert client.get("/v1/models").status_code == 200
        lines = [record.getMessage() for record in caplog.records if "told/once" in record.getMessage()]
        caplog.clear()
        return lines

    try:
        assert told() == []
        (folder / "config.json").write_text("[]")
        (first,) = told()
        assert first == ("the model folder 'told/once' is broken and not offered: its config.json is not a JSON object")
        assert told() == []
        (folder / "config.json").write_text("{}")
        assert told() == ["the model folder 'told/once' is no longer broken"]
    finally:
        shutil.rmtree(models_dir / "told")


def test_operators_see_broken_folders_and_why(root: Path) -> None:
    (root / factories.offer_model(root, "org/bad") / "config.json").write_text("5")
    shown = CliRunner().invoke(troll, ["models", "broken", "--models-dir", str(root), "--json"])
    assert json.loads(shown.output) == [{"id": "org/bad", "reason": "its config.json is not a JSON object"}]


def test_an_error_names_a_few_models_only(client: TestClient, models_dir: Path) -> None:
    for n in range(40):
        factories.offer_model(models_dir, f"many/m{n}")
    try:
        message = client.get("/v1/models/" + "x" * 5000).json()["error"]["message"]
        assert " more." in message
        assert len(message) < 2000
    finally:
        shutil.rmtree(models_dir / "many")
