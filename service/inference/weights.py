"""Which folder a model is served from: its own, or its base model's with an adapter on it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from service.contracts import chat_template
from service.core.errors import DomainError, invalid
from service.models import service as models

ADAPTER, CONFIG = "adapter", "adapter_config.json"


@dataclass(frozen=True)
class Served:
    """A model as it is served. ``folder`` is a Hugging Face model folder, ``adapter`` one in peft's format."""

    model: str
    folder: Path
    adapter: Path | None = None
    template_values: dict[str, Any] = field(default_factory=dict)
    """What its chats are rendered with, unless a request says otherwise."""


def find(session: Session, id: str) -> Served:
    """The model ``id``. Raises a 404, or a 400 where its folder is not as it should be.

    One that was trained with LoRA keeps its adapter beside its merged weights. As long as its base model is on offer,
    it is served from there, so that one loaded base serves all of its adapters; without it, merged.
    """
    path = models.find(session, id, param="model").path
    adapter = path / ADAPTER
    try:
        values = chat_template.remembered(path)
    except chat_template.MalformedTemplateError as error:
        raise invalid(f"The model cannot be used: {error}.", "model", "invalid_model") from error
    if not (adapter / CONFIG).is_file():
        return Served(id, path, template_values=values)
    base = json.loads((adapter / CONFIG).read_bytes())["base_model_name_or_path"]
    try:
        return Served(id, models.find(session, base, param="model").path, adapter, values)
    except DomainError:
        return Served(id, path, template_values=values)
