"""LoRA adapters on one loaded base model: loaded when asked for, switched between steps, the unused forgotten."""

import hashlib
from collections import OrderedDict
from pathlib import Path

from transformers import PreTrainedModel

from workers.serving.host.engine import RequestRefusedError

WEIGHTS = "adapter_model.safetensors"
KEPT = 8
"""Adapters kept in memory; they are a hundredth of their base."""


class Adapters:
    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._loaded: OrderedDict[Path, str] = OrderedDict()
        """Names by folder, the one used last at the end."""
        self._active: Path | None = None

    def load(self, folder: Path) -> None:
        """Have the adapter in ``folder`` in memory. Raises ``RequestRefusedError`` when it does not fit the model."""
        if folder in self._loaded:
            self._loaded.move_to_end(folder)
            return
        if not (folder / WEIGHTS).is_file():
            raise RequestRefusedError(f"The adapter lacks {WEIGHTS}, the only file its weights are read from.", "model")
        name = f"a{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
        try:
            self._model.load_adapter(str(folder), adapter_name=name)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise RequestRefusedError(
                f"The adapter does not load onto its base model: {error}", "model", "invalid_model"
            ) from error
        self._model.enable_adapters()
        self._model.set_adapter(name)
        self._model.eval()
        self._loaded[folder], self._active = name, folder

    def use(self, folder: Path | None) -> None:
        """Let the next forward passes run with this adapter, or with none."""
        if folder == self._active:
            return
        if folder is None:
            self._model.disable_adapters()
        else:
            self._model.enable_adapters()
            self._model.set_adapter(self._loaded[folder])
            self._loaded.move_to_end(folder)
        self._active = folder

    def forget_unused(self, used: set[Path | None]) -> None:
        """Drop the adapters used longest ago, beyond those kept, that nobody is using now."""
        spare = [folder for folder in self._loaded if folder not in {*used, self._active}]
        for folder in spare[: max(0, len(self._loaded) - KEPT)]:
            self._model.delete_adapter(self._loaded.pop(folder))
