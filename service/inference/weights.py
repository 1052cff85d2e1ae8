"""Which folder a model is served from: its own, or its base model's with an adapter on it."""

import json
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from service.core.errors import DomainError
from service.models import service as models

ADAPTER, CONFIG = "adapter", "adapter_config.json"


@dataclass(frozen=True)
class Served:
    """A model as it is served. ``folder`` is a Hugging Face model folder, ``adapter`` one in peft's format."""

    model: str
    folder: Path
    adapter: Path | None = None


def find(session: Session, id: str) -> Served:
    """The model ``id``. Raises a 404.

    One that was trained with LoRA keeps its adapter beside its merged weights. As long as its base model is on offer,
    it is served from there, so that one loaded base serves all of its adapters; without it, merged.
    """
    path = models.find(session, id, param="model").path
    adapter = path / ADAPTER
    if not (adapter / CONFIG).is_file():
        return Served(id, path)
    base = json.loads((adapter / CONFIG).read_bytes())["base_model_name_or_path"]
    try:
        return Served(id, models.find(session, base, param="model").path, adapter)
    except DomainError:
        return Served(id, path)
