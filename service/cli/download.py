"""Downloading a model: whole or not at all, checked by checksums, and going on where a broken connection left it.

What has come so far is in a hidden folder beside the target, in files named after the checksum that they should have in
the end. So a file that has changed on the server meanwhile begins anew, and one that has not goes on.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2

from service.cli.failure import CommandError

if TYPE_CHECKING:
    from openai import OpenAI

TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
LISTING_SECONDS = 600.0
"""The server reads all weights for their checksums when it is asked for the first time."""
ATTEMPTS = 3
"""Tries in a row that bring nothing new."""
WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class File:
    """A file of the model, as the server announces it."""

    name: str
    size: int
    sha256: str

    def part(self, folder: Path) -> Path:
        # With its name, because two files may have the same content.
        return folder / f"{self.sha256}-{self.name.replace('/', '-')}.part"


class DownloadInterruptedError(Exception):
    """The connection broke, or what came is not what was announced."""


def address_of(model: str) -> str:
    """The path of a model's operations."""
    return f"models/{urllib.parse.quote(model, safe=':')}"


def download(client: "OpenAI", model: str, target: Path, export: str | None = None) -> None:
    """Put the files of a model, or of an ``export`` of it, into the new folder ``target``, whole or not at all.

    Raises ``CommandError``.
    """
    address = address_of(model) if export is None else f"{address_of(model)}/exports/{export}"
    if target.exists():
        raise CommandError(f"{target} exists already. Name another folder with -o.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with _folder(partial), _session(client) as session:
            files = _persist(session, model, f"{address}/files", partial)
            for file in files:
                (partial / file.name).parent.mkdir(exist_ok=True)
                file.part(partial).rename(partial / file.name)
            partial.rename(target)
    except OSError as error:
        raise CommandError(f"Downloading {model} failed: {error}") from error


@contextmanager
def _folder(partial: Path) -> Iterator[None]:
    """The hidden folder, for this process alone. It stays when there is something in it to go on with."""
    partial.mkdir(exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CommandError(f"{partial} is being filled by another 'troll pull'.") from error
    try:
        yield
    finally:
        if partial.exists() and not any(partial.iterdir()):
            partial.rmdir()
        os.close(descriptor)


def _session(client: "OpenAI") -> httpx2.Client:
    # The official client would hold all of an answer in memory.
    headers = {"authorization": f"Bearer {client.api_key}", "accept-encoding": "identity"}
    return httpx2.Client(base_url=str(client.base_url), headers=headers, timeout=TIMEOUT)


def _persist(session: httpx2.Client, model: str, address: str, partial: Path) -> list[File]:
    """Bring every file's part to its end. Returns the files."""
    fruitless = 0
    while True:
        before = _bytes_in(partial)
        try:
            files = _list(session, address, model)
            _forget_others(partial, files)
            for file in files:
                _fetch(session, f"{address}/{urllib.parse.quote(file.name)}", file, partial)
            return files
        except (httpx2.TransportError, DownloadInterruptedError) as error:
            fruitless = 0 if _bytes_in(partial) > before else fruitless + 1
            if fruitless == ATTEMPTS:
                message = f"The download of {model} was interrupted: {error or type(error).__name__}."
                kept = _bytes_in(partial)
                rest = f" Run the command again to go on: {kept:,} bytes are kept in {partial}." if kept else ""
                raise CommandError(message + rest) from error
            time.sleep(WAIT_SECONDS)


def _list(session: httpx2.Client, address: str, model: str) -> list[File]:
    answer = session.get(address, timeout=httpx2.Timeout(LISTING_SECONDS, connect=10.0))
    _check(answer)
    files = [File(str(each["name"]), int(each["bytes"]), str(each["sha256"])) for each in answer.json()["data"]]
    for file in files:
        if not _is_plain(file.name) or len(file.sha256) != 64:
            raise CommandError(f"{model} has a file '{file.name}', which is not a plain file name.")
        if not file.sha256.isalnum():
            raise CommandError(f"{model} has a file with the checksum '{file.sha256}', which is none.")
    return files


def _is_plain(name: str) -> bool:
    """Whether a file of this name lies in a folder or in one beneath it, and nowhere else."""
    parts = name.split("/")
    return len(parts) <= 2 and all(part not in ("", ".", "..") for part in parts)


def _forget_others(partial: Path, files: list[File]) -> None:
    """Remove what belongs to no file any more."""
    wanted = {file.part(partial) for file in files}
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path not in wanted:
            path.unlink()


def _fetch(session: httpx2.Client, address: str, file: File, partial: Path) -> None:
    """Complete one file. Raises ``DownloadInterruptedError`` when what the server has now cannot complete it."""
    part = file.part(partial)
    have = part.stat().st_size if part.exists() else 0
    if have < file.size or not part.exists():
        etag = f'"{file.sha256}"'
        headers = {"range": f"bytes={have}-", "if-range": etag} if have else {}
        with session.stream("GET", address, headers=headers) as answer:
            _check(answer)
            if answer.headers.get("etag", etag) != etag:
                raise DownloadInterruptedError(f"{file.name} has changed on the server")
            with part.open("ab" if answer.status_code == 206 else "wb") as target:
                for chunk in answer.iter_raw():
                    target.write(chunk)
    with part.open("rb") as whole:
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
    if digest == file.sha256:
        return
    if part.stat().st_size >= file.size:
        part.unlink()
    raise DownloadInterruptedError(f"what came of {file.name} is not what the server announced")


def _check(answer: httpx2.Response) -> None:
    if answer.status_code in (200, 206):
        return
    answer.read()
    try:
        message = str(json.loads(answer.content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = answer.reason_phrase
    if answer.status_code >= 500 or answer.status_code in (408, 416, 429):
        raise DownloadInterruptedError(f"{message} (HTTP {answer.status_code})")
    raise CommandError(f"{message} (HTTP {answer.status_code})")


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
