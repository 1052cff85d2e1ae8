"""Loading a model into the engine that the operator chose."""

from pathlib import Path

import torch

from service.inference.wire import Failed
from workers.rollouts.errors import EngineUnavailable
from workers.serving import memory
from workers.serving.host.engine import Engine
from workers.serving.lines import Options, Ready
from workers.training import policy
from workers.training.errors import RunError


class CannotLoad(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failed(status=status, code=code, message=message, param="model")


def load(options: Options) -> tuple[Engine, Ready]:
    """The engine and what its model takes. Raises ``CannotLoad``."""
    folder = Path(options.model_path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory.machine()
    weights = memory.weights(folder)
    try:
        if options.engine == "vllm":
            from workers.serving.host.vllm import VLLMServingEngine

            # vLLM takes its share whole, for weights and for the keys and values of what it generates.
            used = int(total * options.memory_share) if device.type == "cuda" else weights
            return VLLMServingEngine(folder, options), Ready(used_bytes=used, total_bytes=total)
        from workers.serving.host.batching import BatchingEngine

        model, tokenizer = policy.read(folder, "auto")
        engine = BatchingEngine(model.to(device).eval(), tokenizer, policy.stop_ids(folder, tokenizer))
        return engine, Ready(used_bytes=weights, total_bytes=total)
    except RunError as error:
        raise CannotLoad(400, error.code, str(error)) from error
    except EngineUnavailable as error:
        raise CannotLoad(503, "engine_unavailable", str(error)) from error
    except torch.OutOfMemoryError as error:
        raise CannotLoad(503, "out_of_memory", "There is not enough free GPU memory to load the model.") from error
