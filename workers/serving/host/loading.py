"""Loading a model into the engine that the operator chose."""

import logging
from pathlib import Path

import torch

from service.inference.wire import Failed
from workers.data import templating
from workers.errors import RunError
from workers.modeling import model_folder
from workers.rollouts.errors import EngineUnavailableError
from workers.serving import memory
from workers.serving.host.engine import Engine
from workers.serving.host.tools import can_call
from workers.serving.lines import Options, Ready

MAX_REASON = 500

log = logging.getLogger(__name__)


class ModelLoadError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failed(status=status, code=code, message=message, param="model")


def load(options: Options) -> tuple[Engine, Ready]:
    """The engine and what its model takes. Raises ``ModelLoadError``."""
    folder = Path(options.model_path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory.machine()
    weights = memory.weights(folder)
    try:
        if options.engine == "vllm":
            from workers.serving.host.vllm import VLLMServingEngine

            # vLLM takes its share whole, for weights and for the keys and values of what it generates.
            used = int(total * options.memory_share) if device.type == "cuda" else weights
            vllm = VLLMServingEngine(folder, options)
            return vllm, _ready(vllm, used, total)
        from workers.serving.host.batching import BatchingEngine

        model, tokenizer = model_folder.read(folder, "auto")
        engine = BatchingEngine(model.to(device).eval(), tokenizer, model_folder.stop_ids(folder, tokenizer))
        return engine, _ready(engine, weights, total)
    except RunError as error:
        raise ModelLoadError(400, error.code, str(error)) from error
    except EngineUnavailableError as error:
        raise ModelLoadError(503, "engine_unavailable", str(error)) from error
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(503, "out_of_memory", "There is not enough free GPU memory to load the model.") from error
    except MemoryError as error:
        raise ModelLoadError(503, "out_of_memory", "There is not enough free memory to load the model.") from error
    except Exception as error:
        # What transformers raises over a folder that is not as it expects is of every kind.
        log.exception("%s cannot be loaded", folder)
        message = f"The model's folder cannot be loaded: {type(error).__name__}: {str(error)[:MAX_REASON]}"
        raise ModelLoadError(400, "invalid_model", message) from error


def _ready(engine: Engine, used: int, total: int) -> Ready:
    tokenizer = engine.tokenizer
    template = tokenizer.chat_template
    return Ready(
        used_bytes=used,
        total_bytes=total,
        chat_template=None if template is None else templating.template(tokenizer, None),
        tools_template=None if template is None else templating.template(tokenizer, [{}]),
        special_tokens=templating.special_tokens(tokenizer),
        can_call=can_call(tokenizer),
    )
