"""The data folder: private, locked by one, with secrets that stay."""

import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from service.embedded.folder import LONGEST_SOCKET_PATH, Folder
from service.embedded.processes import StartError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.delenv("TROLL_KEY_PEPPER", raising=False)
    folder = Folder(tmp_path / "data")
    folder.prepare()
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_may_enter(folder: Folder) -> None:
    assert {mode(path) for path in [folder.root, *folder.root.iterdir()]} == {0o700}


def test_what_was_open_to_others_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    ours = ["uploads/upload_1/part_1", "files/file-1", "jobs/ftjob-1/attempt-1/run.json", "logs/api.log", "redis/x"]
    for name in [*ours, "first_key", "lock", "models/base/config.json", "strangers/note"]:
        (tmp_path / name).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o644)
    Folder(tmp_path).prepare()
    for name in ours:
        path = tmp_path / name
        assert mode(path) == 0o600
        assert {mode(parent) for parent in path.parents if parent != tmp_path and tmp_path in parent.parents} == {0o700}
    assert [mode(tmp_path / name) for name in ("first_key", "lock", "models")] == [0o600, 0o600, 0o700]
    assert [mode(tmp_path), mode(tmp_path / "strangers/note")] == [0o755, 0o644]
    assert mode(tmp_path / "models/base/config.json") == 0o644, "it may be a link to somebody's weights"


def test_a_models_folder_that_is_elsewhere_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/models").symlink_to(tmp_path / "shared")
    Folder(tmp_path / "data").prepare()
    assert mode(tmp_path / "shared") == 0o755


def test_the_pepper_is_made_once_and_readable_by_its_owner_only(folder: Folder) -> None:
    pepper = folder.pepper()
    assert len(pepper) >= 32
    assert Folder(folder.root).pepper() == pepper
    assert mode(folder.root / "secrets.json") == 0o600


def test_an_operators_pepper_goes_first(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROLL_KEY_PEPPER", "x" * 40)
    assert folder.pepper() == "x" * 40
    assert not (folder.root / "secrets.json").exists()


def test_a_second_stack_is_refused_and_told_who_is_there(folder: Folder) -> None:
    code = (
        "import pathlib, sys\n"
        "from service.embedded.folder import Folder\n"
        "folder = Folder(pathlib.Path(sys.argv[1])); folder.lock()\n"
        "print(folder.holder(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert int(other.stdout.readline()) == other.pid
        with pytest.raises(StartError, match=f"in use by process {other.pid}.*troll down"):
            folder.lock()
        other.communicate()
    folder.lock()
    folder.unlock()


def test_a_killed_holder_does_not_keep_the_folder(folder: Folder) -> None:
    code = (
        "import os, pathlib, signal, sys\n"
        "from service.embedded.folder import Folder\n"
        "Folder(pathlib.Path(sys.argv[1])).lock(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder.root)], check=False)
    assert folder.holder() is None
    folder.lock()
    folder.unlock()


UNUSUAL = "a clone, 100% + ünï?#&=;'\"\\"


@pytest.mark.parametrize("name", ["x" * 120, UNUSUAL])
@pytest.mark.parametrize("temporary", ["/tmp", "{tmp_path}/also, unusual"])
def test_sockets_go_where_their_path_is_short_and_plain_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, temporary: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", temporary.format(tmp_path=tmp_path))
    folder = Folder(tmp_path / name)
    folder.prepare()
    folder.lock()
    sockets = folder.sockets()
    assert len(str(sockets / "postgres" / ".s.PGSQL.5432")) <= LONGEST_SOCKET_PATH
    assert re.fullmatch("[A-Za-z0-9/._-]+", str(sockets))
    assert mode(sockets) == 0o700
    folder.unlock()
    assert not sockets.exists()


def test_sockets_of_other_folders_are_in_them() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        folder = Folder(Path(root))
        assert folder.sockets() == folder.root / "run"
        folder.unlock()
        assert (folder.root / "run").exists()
