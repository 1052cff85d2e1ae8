"""``troll submit``: a YAML file is the body of a create request, with local paths where the API has file ids.

Whatever is wrong, here or by the service's judgement, is reported with the line of the file it is about.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from service.cli import files
from service.cli.failure import CommandError

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

FILES = ("training_file", "validation_file")
"""Keys that name files, beside ``file`` of each of the method's ``validation_sets``."""
REQUIRED = ("model",)
ALLOWED = ("model", *FILES, "method", "suffix", "seed", "metadata", "integrations")


class Loader(yaml.SafeLoader):
    """Takes ``1e-4`` for a number, as people mean it; YAML 1.1 alone takes it for text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


@dataclass(frozen=True)
class Document:
    """A parsed file: its value, and the line of every key by dotted path."""

    path: Path
    body: dict[str, Any]
    lines: dict[str, int]

    def error(self, message: str, param: str | None = None) -> CommandError:
        """An error that points to the line of ``param``, or of the nearest key around it."""
        key = param or ""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return CommandError(f"{self.path}:{self.lines.get(key, 1)}: {message}")


def read(path: Path) -> Document:
    """Parse and check the shape of ``path``. Raises ``CommandError``."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = Loader(text)
        node = loader.get_single_node()
        body = loader.construct_document(node) if node is not None else None
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"Cannot read {path}: {error}") from error
    except yaml.MarkedYAMLError as error:
        # Some problems are noticed only at the end of the file, on a line that is not there.
        line = min(error.problem_mark.line + 1, len(text.splitlines())) if error.problem_mark else 1
        raise CommandError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    if node is None or not isinstance(body, dict):
        raise CommandError(f"{path}:1: the file must hold keys and values: {', '.join(ALLOWED)}.")
    document = Document(path, body, {})
    for key, line in _keys(node):
        if key in document.lines:
            raise CommandError(f"{path}:{line}: '{key}' is given twice, first on line {document.lines[key]}.")
        document.lines[key] = line
    _check(document)
    return document


def create(client: "OpenAI", document: Document) -> "FineTuningJob":
    """Upload the local files, create the job, and take the files back when the service refuses it."""
    import openai

    body, uploaded = copy.deepcopy(document.body), []
    named: list[tuple[str, dict[str, Any], str]] = [(key, body, key) for key in FILES if body.get(key) is not None]
    named += [(f"{where}.file", each, "file") for where, each in _sets(body)]
    local = [(name, holder, key, _local_file(document, name, str(holder[key]))) for name, holder, key in named]
    try:
        for where, holder, key, path in local:
            name = where
            if path is not None:
                holder[key] = files.send(client, path)
                uploaded.append(holder[key])
        # The client asks for a training file, which an evaluation has not.
        return client.fine_tuning.jobs.create(**{"training_file": openai.omit} | body)
    except openai.BadRequestError as error:
        for file_id in uploaded:
            client.files.delete(file_id)
        message = error.body.get("message") if isinstance(error.body, dict) else None
        param = error.param if error.param != "file" else name
        raise document.error(str(message or error.message), param) from error


def _check(document: Document) -> None:
    for name in document.body:
        if name not in ALLOWED:
            raise document.error(f"unknown key '{name}'; known ones are {', '.join(ALLOWED)}.", str(name))
    for name in REQUIRED:
        if document.body.get(name) is None:
            raise document.error(f"'{name}' is missing.", name)


def _sets(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The validation sets that name a file, each with its path; what is wrong with others the service says."""
    method = body.get("method")
    name = method.get("type") if isinstance(method, dict) else None
    parts = method.get(name) if isinstance(method, dict) and isinstance(name, str) else None
    sets = parts.get("validation_sets") if isinstance(parts, dict) else None
    for number, each in enumerate(sets if isinstance(sets, list) else []):
        if isinstance(each, dict) and each.get("file") is not None:
            yield f"method.{name}.validation_sets[{number}]", each


def _local_file(document: Document, name: str, value: str) -> Path | None:
    """The file that ``value`` of key ``name`` means, relative to the YAML file; None for the id of an uploaded one."""
    path = document.path.parent / Path(value).expanduser()
    if path.is_file():
        return path
    if value.startswith("file-"):
        return None
    raise document.error(f"'{name}': there is no file {path}, and '{value}' is not a file id (file-…).", name)


def _keys(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every key beneath ``node`` as a dotted path, with its line counted from 1."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}{key.value}"
            yield path, key.start_mark.line + 1
            yield from _keys(value, path + ".")
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _keys(value, f"{prefix.removesuffix('.')}[{index}].")
