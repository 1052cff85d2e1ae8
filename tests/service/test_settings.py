"""Secrets that are files."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import MissingSettingError, required, settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("DATABASE_URL", "REDIS_URL", "TROLL_KEY_PEPPER", "TROLL_WEBHOOK_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TROLL_DATA_DIR", "TROLL_MODELS_DIR", "TROLL_SECRETS_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    settings.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    settings.cache_clear()


def test_a_file_gives_what_the_environment_does_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "redis_url").write_text("redis://in-a-file\n")
    (folder / "troll_webhook_key").write_text("a" * 64)
    (folder / "database_url").write_text("postgresql://in-a-file/troll")
    monkeypatch.setenv("DATABASE_URL", "postgresql://in-the-environment/troll")
    assert required("redis_url") == "redis://in-a-file"
    assert required("webhook_key") == "a" * 64
    assert required("database_url") == "postgresql://in-the-environment/troll"


def test_what_is_in_neither_is_named(folder: Path) -> None:
    with pytest.raises(MissingSettingError, match="TROLL_KEY_PEPPER is not set, nor a file of TROLL_SECRETS_DIR"):
        required("key_pepper")


def test_a_folder_that_is_not_mounted_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROLL_SECRETS_DIR", str(folder / "absent"))
    with pytest.raises(MissingSettingError, match="is it mounted"):
        settings()
