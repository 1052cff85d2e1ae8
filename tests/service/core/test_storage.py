"""The data folder is its owner's: rights that others were given are taken away."""

import os
import stat
from pathlib import Path

import pytest

from service.core import storage
from service.settings import settings


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def opened(tmp_path: Path) -> Path:
    """A tree as an umask of 022 leaves it, with links that lead out of it."""
    outside = tmp_path / "outside"
    outside.write_text("")
    outside.chmod(0o644)
    inner = tmp_path / "tree" / "inner"
    inner.mkdir(parents=True)
    for name in ("plain", "program"):
        (inner / name).write_text("")
    (inner / "link").symlink_to(outside)
    (inner / "dangling").symlink_to(tmp_path / "nowhere")
    for path, wanted in ((inner.parent, 0o755), (inner, 0o777), (inner / "plain", 0o664), (inner / "program", 0o755)):
        path.chmod(wanted)
    return tmp_path / "tree"


def test_only_the_owners_rights_are_left(opened: Path) -> None:
    storage.take_rights([opened, opened.parent / "missing"])
    inner = opened / "inner"
    assert [mode(path) for path in (opened, inner, inner / "plain", inner / "program")] == [0o700, 0o700, 0o600, 0o700]


def test_what_links_lead_to_is_left_alone(opened: Path) -> None:
    storage.take_rights([opened])
    assert mode(opened.parent / "outside") == 0o644


def test_hard_links_share_the_right_mode(opened: Path) -> None:
    os.link(opened / "inner/plain", opened.parent / "twin")
    storage.take_rights([opened])
    assert mode(opened.parent / "twin") == 0o600


def test_folders_that_an_earlier_version_left_open_are_closed_when_the_api_starts(data_dir: Path) -> None:
    uploads = settings().data_dir / "uploads"
    (uploads / "upload_1").mkdir(parents=True, exist_ok=True)
    (uploads / "upload_1" / "part_1").write_text("")
    for path, wanted in ((uploads / "upload_1/part_1", 0o644), (uploads / "upload_1", 0o755), (uploads, 0o755)):
        path.chmod(wanted)
    storage.close_to_others()
    assert [mode(path) for path in (uploads, uploads / "upload_1", uploads / "upload_1/part_1")] == [
        0o700,
        0o700,
        0o600,
    ]
