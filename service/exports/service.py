"""Asking for exports, and finding what came of them. ``workers.control.exporter`` makes them."""

import json
import shutil
from datetime import timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from service.accounts.known import Principal
from service.audit import repository as audit
from service.contracts.export_formats import BITS, GGUF_FAMILIES
from service.core import broker, clock, storage
from service.core.db import across_projects, after_commit, lock
from service.core.errors import DomainError, invalid, not_found
from service.core.ids import new_id
from service.exports import repository, seal
from service.exports.models import Export
from service.exports.schemas import CreateExport
from service.models import service as models
from service.models import size
from service.models.archive import ADAPTER
from service.settings import settings
from service.usage import service as usage

PREFIX = "export-"
MAX_OPEN = 20
"""Exports of an organisation that may wait or be at work at a time."""


def create(session: Session, principal: Principal, model_id: str, request: CreateExport) -> Export:
    """Queue an export. Raises where the model cannot have that form, or the operator does not allow where it goes."""
    model = models.hold(session, model_id, param="model", status=404)
    _check(model, request)
    # Two that are asked for at once would each find room for one.
    lock(session, f"exports/{principal.organization_id}")
    with across_projects(session):
        waiting = repository.count_open(session, principal.organization_id)
    if waiting >= MAX_OPEN:
        message = f"Your organization already has {MAX_OPEN} exports that are not finished. Wait, or delete some."
        raise DomainError(429, "export_quota_exceeded", message, headers={"x-should-retry": "false"})
    most = _most_bytes(model.path, request)
    usage.check_storage(session, principal.organization_id, most)
    id, hub = new_id(PREFIX), request.hub
    export = Export(
        id=id,
        organization_id=principal.organization_id,
        project_id=principal.project_id,
        model=model.id,
        source=str(model.path),
        format=request.format,
        type=request.type,
        hub=None if hub is None else {"repository": hub.repository, "private": hub.private},
        sealed_token=None if hub is None else seal.seal(id, hub.token.get_secret_value()),
        bytes=most,
        expires_at=clock.now(session) + kept_for(),
    )
    repository.add(session, export)
    data = {"model": model.id, "format": export.format, "type": export.type, "hub": export.hub}
    audit.record(session, "export.created", id, data=data)
    after_commit(session, broker.ring_exports)
    return export


def retrieve(session: Session, model: str, id: str) -> Export:
    export = repository.get(session, model, id)
    if export is None:
        raise not_found("export", id, "export_id")
    return export


def content(session: Session, model: str, id: str) -> Path:
    """The folder of an export that can be downloaded."""
    export = retrieve(session, model, id)
    if export.hub is not None:
        raise invalid("This export goes to a hub: nothing of it is kept here.", "export_id", "export_not_kept")
    if export.status != "succeeded":
        message = f"This export is {export.status}: it can be downloaded once it has succeeded."
        raise invalid(message, "export_id", "export_not_ready")
    return storage.export_dir(id)


def delete(session: Session, model: str, id: str) -> None:
    """Remove an export and its files. One that is at work on ends."""
    if not repository.remove(session, model, id):
        raise not_found("export", id, "export_id")
    audit.record(session, "export.deleted", id)
    after_commit(session, lambda: shutil.rmtree(storage.export_dir(id), ignore_errors=True))


def kept_for() -> timedelta:
    return timedelta(hours=settings().exports_kept_hours)


def _check(model: models.Model, request: CreateExport) -> None:
    if request.hub is not None and settings().hub_url is None:
        message = "The operator of this service does not allow exports to a hub (TROLL_HUB_URL). Download them instead."
        raise invalid(message, "hub", "hub_not_allowed")
    if request.type is not None and request.format != "gguf":
        raise invalid(f"Only a GGUF file has a type; the format is '{request.format}'.", "type")
    if request.format in ("adapter", "merged") and not (model.path / ADAPTER).is_dir():
        message = (
            f"The model '{model.id}' has no adapter: only jobs with lora_rank make one. Export it as 'huggingface' or "
            "'gguf'."
        )
        raise invalid(message, "format", "no_adapter")
    family = _family(model.path)
    if request.format == "gguf" and family not in GGUF_FAMILIES:
        message = (
            f"The model '{model.id}' is of the family '{family}'. GGUF files are made of these: "
            f"{', '.join(GGUF_FAMILIES)}. Export it as 'huggingface'."
        )
        raise invalid(message, "format", "unsupported_family")


def _family(folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return "unknown"
    return str(config.get("model_type", "unknown")) if isinstance(config, dict) else "unknown"


def _most_bytes(folder: Path, request: CreateExport) -> int:
    """How much the export can come to."""
    if request.format == "adapter":
        weights = storage.bytes_in([folder / ADAPTER])
    else:
        weights = storage.bytes_in(folder.glob("*.safetensors"))
        if request.format == "huggingface":
            weights += storage.bytes_in([folder / ADAPTER])
        numbers = size.parameters(folder)
        if request.format == "gguf" and request.type is not None and numbers is not None:
            weights = int(numbers * BITS[request.type] / 8)
    others = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".safetensors"]
    # A tokenizer is written in another way, and a file begins at a round number of bytes in a tar.
    return weights + 2 * storage.bytes_in(others) + 64 * 1024
