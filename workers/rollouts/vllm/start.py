"""Starting vLLM inside this process, and keeping what it changes in the process to what it needs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from service.contracts.engines import MEMORY_SHARE
from workers.rollouts.errors import EngineUnavailableError

GRAMMARS = "guidance"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_RECEIVER = "workers.rollouts.vllm.receiver.WeightReceiver"
_ENVIRONMENT = {
    # In one process weights are handed over as tensors and log-probabilities come back as arrays.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # A self-hosted service reports to nobody.
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is started with; it cannot be changed later."""

    context_length: int
    """Most tokens of prompt and answer together."""
    dtype: Literal["float32", "bfloat16"]
    """What the engine computes in: the same as the trainer, or their log-probabilities part."""
    top_log_probs: int = 0
    """How many most likely tokens each position of a rollout carries. Objectives use 64."""
    lora_rank: int = 0
    """Rank of the adapters that will be pushed; 0 when whole weights are."""
    lora_modules: tuple[str, ...] = ()
    """Last names of the modules that adapters change, like ``("q_proj", "o_proj")``; needed with a ``lora_rank``."""
    memory_share: float = MEMORY_SHARE
    """Share of the GPU's memory for weights and cache; the trainer needs the rest."""
    cpu_cache_bytes: int = 1 << 30
    """Size of the key-value cache on a machine without GPU."""
    ranks: int = 1
    """How many processes start an engine at the same time, as ranks of one ``torch.distributed`` group."""
    tensor_parallel: int = 1
    """How many ranks in sequence share one engine: its weights are split over them, and all are asked the same."""
    structured: bool = False
    """Whether answers will be held to grammars, for which the engine needs the folder's tokenizer."""
    shared_gpu: bool = False
    """Whether the engine can give its GPU memory to the trainer and take it back. Not on a machine without GPU."""

    def __post_init__(self) -> None:
        if self.ranks % self.tensor_parallel:
            raise ValueError(f"tensor_parallel {self.tensor_parallel} does not divide the {self.ranks} ranks")
        if bool(self.lora_rank) != bool(self.lora_modules):
            raise ValueError(f"lora_rank {self.lora_rank} and lora_modules {self.lora_modules}: give both or neither")


def start(model_path: Path, settings: EngineSettings) -> Any:
    """A ``vllm.v1.engine.llm_engine.LLMEngine`` on the model folder.

    Raises:
        EngineUnavailableError: vLLM is not installed, or does not start; names the settings that bound its memory.
    """
    os.environ.update(_ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine
    except ImportError as error:
        raise EngineUnavailableError(
            f"vLLM cannot be imported ({error}). Install it: pip install 'troll-rft[vllm]', or run the job with "
            'rollout_engine "transformers".'
        ) from error
    if current_platform.is_cpu():
        # Ranking a log-probability would otherwise wait many seconds for a C++ compiler, and fail without one.
        type(current_platform).simple_compile_backend = "eager"
    try:
        with _process_kept():
            return LLMEngine.from_engine_args(EngineArgs(**_arguments(model_path, settings, current_platform.is_cpu())))
    except Exception as error:
        raise EngineUnavailableError(_why_not(model_path, settings, error)) from error


def _arguments(model_path: Path, settings: EngineSettings, cpu: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": str(model_path),
        "skip_tokenizer_init": not settings.structured,
        # The library that schemas were tried with, and that the trainer asks for the same masks.
        "structured_outputs_config": {"backend": GRAMMARS},
        # Defaults of the model's author (top_p, temperature, stop tokens) would sample from another distribution.
        "generation_config": "vllm",
        "dtype": settings.dtype,
        "max_model_len": settings.context_length,
        "max_logprobs": max(64, settings.top_log_probs),
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "worker_extension_cls": _RECEIVER,
        "enforce_eager": cpu,
    }
    if settings.ranks > 1:
        # The group was started by others; in it, engines are replicas of one or more ranks.
        arguments |= {
            "distributed_executor_backend": "external_launcher",
            "tensor_parallel_size": settings.tensor_parallel,
        }
    if cpu:
        arguments["kv_cache_memory_bytes"] = settings.cpu_cache_bytes
    else:
        arguments |= {"gpu_memory_utilization": settings.memory_share, "enable_sleep_mode": settings.shared_gpu}
    if settings.lora_rank:
        rank = next((rank for rank in LORA_RANKS if rank >= settings.lora_rank), settings.lora_rank)
        # One slot: an older adapter cannot even be kept.
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        # Unless it is left out, vLLM wraps the output layer as well, and on a CPU cannot score prompts then.
        arguments["lora_target_modules"] = list(settings.lora_modules)
    return arguments


@contextmanager
def _process_kept() -> Iterator[None]:
    """Undoes what vLLM's start does to the process it shares with the trainer.

    It preloads libraries into every later child, overwrites torchrun's LOCAL_WORLD_SIZE, and makes
    ``torch.set_num_threads`` do nothing. Where it runs a model by transformers' own class, it changes that class for
    compilation, and the trainer's model is of the same one: such a model samples uncompiled instead.
    """
    from vllm.model_executor.models.transformers.base import Base

    decorate = Base._decorate_cls_for_torch_compile
    Base._decorate_cls_for_torch_compile = lambda *_, **__: None
    kept = {name: os.environ.get(name) for name in ("LD_PRELOAD", "LOCAL_WORLD_SIZE")}
    set_num_threads = torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        Base._decorate_cls_for_torch_compile = decorate
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _why_not(model_path: Path, settings: EngineSettings, error: Exception) -> str:
    memory = (
        f"TROLL_ROLLOUT_MEMORY_SHARE={settings.memory_share}"
        if torch.cuda.is_available()
        else f"cpu_cache_bytes={settings.cpu_cache_bytes}"
    )
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"vLLM does not start on {model_path} with context_length={settings.context_length}, {memory}, "
        f"dtype={settings.dtype}: {reason[:600]} If it is short of memory, lower the context length "
        "(max_completion_tokens), choose a smaller model, or give the engine more memory; if it does not know the "
        'model, run the job with rollout_engine "transformers".'
    )
