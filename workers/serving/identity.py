"""Which model a question needs loaded, and what makes a loaded one the right one."""

import json
from dataclasses import dataclass
from pathlib import Path

from service.inference.wire import Failed, Question
from service.settings import Settings
from workers.serving.lines import Options

USUAL_RANK = 64
"""Room for adapters that vLLM is started with at least, so that one engine takes most of a base's adapters."""


@dataclass(frozen=True)
class Identity:
    """A model's folder, as it was when its files last changed, and the adapters that it takes."""

    model_path: str
    changed_ns: int
    lora_rank: int = 0


class ModelUnavailableError(Exception):
    """The host does not come up, or has ended; ``failed`` is what its questions are told."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


def identify(question: Question, settings: Settings) -> tuple[Identity, Options]:
    """Raises ``ModelUnavailableError`` where the folders hold no such model."""
    folder = Path(question.model_path)
    roots = (settings.data_dir.absolute(), settings.models_dir.absolute())
    if not any(folder.is_relative_to(root) for root in roots) or not (folder / "config.json").is_file():
        message = f"The weights of '{question.model}' are not where the serving worker looks for them."
        raise ModelUnavailableError(Failed(status=404, code="model_not_found", message=message, param="model"))
    engine, rank = settings.serving_engine, 0
    if question.adapter_path is not None and engine == "vllm":
        rank = max(USUAL_RANK, _rank(question, Path(question.adapter_path)))
    try:
        changed = max(path.lstat().st_mtime_ns for path in folder.iterdir())
    except OSError as error:
        raise invalid_model(question.model, str(error)) from error
    share = settings.serving_memory_share
    options = Options(model_path=str(folder), engine=engine, lora_rank=rank, memory_share=share)
    return Identity(str(folder), changed, rank), options


def invalid_model(model: str, reason: str) -> ModelUnavailableError:
    message = f"The folder of '{model}' cannot be used: {reason}"
    return ModelUnavailableError(Failed(status=400, code="invalid_model", message=message, param="model"))


def _rank(question: Question, adapter: Path) -> int:
    try:
        return int(json.loads((adapter / "adapter_config.json").read_bytes())["r"])
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise invalid_model(question.model, f"its adapter_config.json has no rank ({error}).") from error
