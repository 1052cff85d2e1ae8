"""The engine over vLLM, in this process: its scheduler batches, its kernels sample, its adapters swap."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.inference.wire import Sampling
from workers.answers import TokenReader, marks
from workers.modeling import model_folder, seeds
from workers.rollouts.errors import EngineUnavailableError
from workers.rollouts.vllm.ends import end_with
from workers.serving.host.engine import Engine, Key, Request, RequestRefusedError, Token
from workers.serving.lines import Options

CPU_CACHE_BYTES = 1 << 30
MAX_LOGPROBS = 20
ADAPTERS = 4
"""Adapters that one step may use; others wait for the next."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
LOWEST_TOP_P = 1e-6


class VLLMServingEngine(Engine):
    """One model in vLLM. Raises ``EngineUnavailableError`` where vLLM does not start, ``RunError`` for a bad folder."""

    def __init__(self, folder: Path, options: Options) -> None:
        model_folder.check(folder)
        self.tokenizer = model_folder.load_tokenizer(folder)
        self.stop_ids = model_folder.stop_ids(folder, self.tokenizer)
        self._engine = _start(folder, options)
        end_with(self.stop_ids)
        config = self._engine.model_config
        self.context_length, self.vocabulary_size = int(config.max_model_len), int(config.get_vocab_size())
        self._marks = marks(self.tokenizer)
        self._adapters: dict[Path, int] = {}
        self._running: dict[str, tuple[Key, Sampling]] = {}
        """Choices that are not complete, by vLLM's name for them."""

    def grammar(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        if sampling.json_schema is not None and not TokenReader(self._marks, prompt).says:
            raise RequestRefusedError(
                "vLLM cannot hold a model that reasons first to a schema here.", "response_format"
            )

    def add(self, request: Request) -> None:
        adapter = None if request.adapter is None else self._adapter(request.adapter)
        for key in request.keys:
            name = f"{key.question}/{key.choice}"
            parameters = self._parameters(request, key)
            prompt = {"prompt_token_ids": list(request.prompt), "cache_salt": request.tenant or "nobody"}
            try:
                self._engine.add_request(name, prompt, parameters, lora_request=adapter)
            except ValueError as error:
                self.drop(request.keys)
                raise RequestRefusedError(f"vLLM refuses this request: {error}", _blamed(request.sampling)) from error
            self._running[name] = (key, request.sampling)

    def drop(self, keys: Sequence[Key]) -> None:
        gone = set(keys)
        names = [name for name, (key, _) in self._running.items() if key in gone]
        if names:
            self._engine.abort_request(names)
        for name in names:
            del self._running[name]

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def step(self) -> list[Token]:
        tokens: list[Token] = []
        for output in self._engine.step():
            key, sampling = self._running.get(output.request_id, (None, None))
            if key is None or sampling is None:
                continue
            said = _tokens(key, sampling, output.outputs[0])
            tokens += said
            if output.finished:
                del self._running[output.request_id]
                if not said or said[-1].end is None:
                    reason = output.outputs[0].finish_reason
                    why = f"The answer could not be held to the JSON schema ({reason}). Make it simpler."
                    tokens.append(Token(key, 0, error=why))
        return tokens

    def _adapter(self, folder: Path) -> Any:
        from vllm.lora.request import LoRARequest

        number = self._adapters.setdefault(folder, len(self._adapters) + 1)
        return LoRARequest(str(folder), number, lora_path=str(folder))

    def _parameters(self, request: Request, key: Key) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling = request.sampling
        schema = sampling.json_schema
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=max(sampling.top_p, LOWEST_TOP_P),
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=dict(sampling.logit_bias) or None,
            seed=seeds.derive(sampling.seed, "choice", key.choice),
            max_tokens=request.max_tokens,
            stop_token_ids=list(self.stop_ids),
            ignore_eos=True,
            logprobs=sampling.logprobs,
            structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )


def _tokens(key: Key, sampling: Sampling, output: Any) -> list[Token]:
    """The new tokens of one choice; the last carries its end."""
    ids = list(output.token_ids)
    ends = [None] * (len(ids) - 1) + [output.finish_reason if output.finish_reason in ("stop", "length") else None]
    if not ids:
        return []
    if sampling.logprobs is None:
        return [Token(key, id, end) for id, end in zip(ids, ends, strict=True)]
    scored = []
    for id, end, candidates in zip(ids, ends, output.logprobs, strict=True):
        ranked = sorted(candidates.items(), key=lambda item: item[1].rank or 0)
        top = [(candidate, each.logprob) for candidate, each in ranked if (each.rank or 0) <= sampling.logprobs]
        scored.append(Token(key, id, end, candidates[id].logprob, top))
    return scored


def _blamed(sampling: Sampling) -> str | None:
    """The field that vLLM is most likely to refuse."""
    if sampling.json_schema is not None:
        return "response_format"
    return "logit_bias" if sampling.logit_bias else None


def _start(folder: Path, options: Options) -> Any:
    """A ``vllm.v1.engine.llm_engine.LLMEngine``. Raises ``EngineUnavailableError``."""
    # A self-hosted service reports to nobody; one process is enough, and ends when it is killed.
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine
    except ImportError as error:
        raise EngineUnavailableError(
            f"vLLM cannot be imported ({error}). Install it (pip install 'troll-rft[vllm]'), or set "
            "TROLL_SERVING_ENGINE=transformers."
        ) from error
    cpu = current_platform.is_cpu()
    if cpu:
        # Ranking a log-probability would otherwise wait many seconds for a C++ compiler, and fail without one.
        type(current_platform).simple_compile_backend = "eager"
    config = json.loads((folder / "config.json").read_bytes())
    arguments: dict[str, Any] = {
        "model": str(folder),
        # Defaults of the model's author would change what a temperature of 1 means.
        "generation_config": "vllm",
        "dtype": config.get("dtype") or config.get("torch_dtype") or "auto",
        # The longest that fits beside the weights.
        "max_model_len": -1,
        "max_logprobs": MAX_LOGPROBS,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        # The library that schemas were tried with.
        "structured_outputs_config": {"backend": "guidance"},
        "enforce_eager": cpu,
    }
    arguments |= {"kv_cache_memory_bytes": CPU_CACHE_BYTES} if cpu else {"gpu_memory_utilization": options.memory_share}
    if options.lora_rank:
        rank = next((rank for rank in LORA_RANKS if rank >= options.lora_rank), options.lora_rank)
        arguments |= {"enable_lora": True, "max_loras": ADAPTERS, "max_lora_rank": rank}
    try:
        return LLMEngine.from_engine_args(EngineArgs(**arguments))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EngineUnavailableError(
            f"vLLM does not start on {folder.name}: {reason[:600]} If it is short of memory, raise "
            "TROLL_SERVING_MEMORY_SHARE; if it does not know the model, set TROLL_SERVING_ENGINE=transformers."
        ) from error
