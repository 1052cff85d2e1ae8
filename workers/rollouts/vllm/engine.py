"""The ``RolloutEngine`` over vLLM: token ids in, token ids and log-probabilities out, weights pushed from memory.

Requests go straight to vLLM's engine core and its arrays are read as they come: its own outputs are a Python object per
candidate and position. K most likely tokens, n tokens of an answer.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from service.contracts.engines import ENGINES
from workers.errors import RunError
from workers.modeling import distributed, lora, sharding
from workers.modeling.policy import Policy
from workers.modeling.precision import dtype_on
from workers.rollouts import probe
from workers.rollouts.engine import Begun, EngineRequest, Rollout, RolloutEngine, Sampling
from workers.rollouts.errors import EngineDiedError, PromptsTooLongError, StaleWeightsError
from workers.rollouts.grammar import Grammar, GrammarFailedError
from workers.rollouts.vllm.ends import end_with
from workers.rollouts.vllm.pending import PendingRollout
from workers.rollouts.vllm.start import GRAMMARS, EngineSettings, start
from workers.wire import ExitCode

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")


class VLLMEngine(RolloutEngine):
    """One model in vLLM, in this process.

    Whole weights arrive by ``sync``; an engine started with a ``lora_rank`` takes adapters by ``sync_adapter`` instead
    and samples from nothing but the last one pushed. Each push counts ``version`` up, and each rollout carries it.

    Args:
        stop_ids: tokens that end an answer.

    Raises:
        EngineUnavailableError: vLLM does not start.
    """

    def __init__(self, model_path: Path, stop_ids: Sequence[int], settings: EngineSettings) -> None:
        self._engine = start(model_path, settings)
        if settings.structured:
            end_with(stop_ids)
        self._core = self._engine.engine_core
        self._settings = settings
        self._stop_ids = sorted(stop_ids)
        config = self._engine.model_config
        self._vocabulary_size: int = config.get_vocab_size()
        self._tied = bool(getattr(config.hf_text_config, "tie_word_embeddings", False))
        self._adapter: Any = None
        self._unusable: str | None = "no adapter was pushed yet" if settings.lora_rank else None
        self._dead: str | None = None
        self._requests = 0
        self._sampling = False
        self.version = 0
        self.together = settings.tensor_parallel
        self.top_log_probs = settings.top_log_probs

    @classmethod
    def of_job(cls, request: EngineRequest) -> Self:
        policy, hyperparameters = request.policy, request.hyperparameters
        _check_split(policy, request.tensor_parallel)
        _check_grammar(request.grammar, request.prompts)
        longest = max(map(len, request.prompts))
        settings = EngineSettings(
            context_length=min(policy.context_length, longest + request.longest_answer),
            dtype=dtype_on(policy.device),
            top_log_probs=request.top_log_probs,
            ranks=distributed.size(),
            tensor_parallel=request.tensor_parallel,
            lora_rank=hyperparameters.lora_rank,
            lora_modules=lora.module_names(policy.adapter) if policy.adapter else (),
            structured=request.grammar is not None,
            memory_share=request.memory_share,
            # An engine that samples while the trainer trains needs its memory all along.
            shared_gpu=policy.device.type == "cuda" and not hyperparameters.max_staleness,
        )
        return cls(policy.folder, policy.stop_ids, settings)

    def push(self, policy: Policy, probes: Sequence[Sequence[int]]) -> None:
        if policy.adapter is None:
            version = self.sync(sharding.whole(policy.model.state_dict().items()))
        else:
            tensors = dict(sharding.whole(lora.tensors(policy.model).items()))
            version = self.sync_adapter(policy.adapter.to_dict(), tensors)
        tolerance = probe.tolerance_for(dtype_on(policy.device), policy.model.config.model_type)
        probe.compare(self.score(probes), policy.score(probes), tolerance, version)

    def stream(
        self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling
    ) -> Generator[tuple[int, list[Rollout]]]:
        """``samples`` rollouts of each prompt with the prompt's index, each group as soon as it is complete.

        Every sample has its own random numbers, drawn from ``sampling.seed``, the prompt's number and the sample's. A
        token may still turn out differently in another batch where two are equally likely to the last bit.

        Raises:
            NonFiniteLogitsError: the weights are beyond repair.
            PromptsTooLongError: names the rows.
            StaleWeightsError: the last push did not complete.
            EngineDiedError: vLLM failed.
            GrammarFailedError: an answer can be held to the grammar no further.
            ValueError: token ids outside the vocabulary, a temperature that vLLM would change, or a grammar that would
                have to begin behind the model's reasoning.
        """
        self._check_sampling(prompts, sampling)
        requests = [
            (prompt, self._parameters(sampling, len(prompt), seed_of(sampling.seed, sampling.number(i), j)))
            for i, prompt in enumerate(prompts)
            for j in range(samples)
        ]
        version, top = self.version, sampling.top and bool(self.top_log_probs)
        groups: dict[int, dict[int, Rollout]] = {i: {} for i in range(len(prompts))}
        with closing(self._run(requests)) as answers:
            for number, answer in answers:
                i, j = divmod(number, samples)
                groups[i][j] = answer.rollout(version, top=top)
                if len(groups[i]) == samples:
                    group = groups.pop(i)
                    yield i, [group[j] for j in range(samples)]

    def extend(
        self, begun: Sequence[Begun], temperature: float, grammar: Grammar | None = None
    ) -> Generator[tuple[int, Rollout]]:
        requests = []
        for each in begun:
            sampling = Sampling(temperature, each.max_tokens, each.seed, grammar=grammar)
            self._check_sampling([each.context], sampling)
            requests.append((each.context, self._parameters(sampling, len(each.context), each.seed)))
        version, top = self.version, bool(self.top_log_probs)
        with closing(self._run(requests)) as pieces:
            for number, piece in pieces:
                yield number, piece.rollout(version, top=top)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Per sequence, the log-probability at temperature 1 of each of its tokens from the second on.

        Raises as ``generate`` does.
        """
        from vllm import SamplingParams

        self._check(sequences)
        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, ignore_eos=True, detokenize=False)
        answers = dict(self._run([(sequence, parameters) for sequence in sequences]))
        return [answers[row].scores() for row in range(len(sequences))]

    def sync(self, named_weights: Iterable[tuple[str, Tensor]]) -> int:
        """Push whole weights, named as in the model's checkpoints, and forget what was cached under the old ones.

        A tied output layer may be named or not. Returns the new version.

        Raises:
            StaleWeightsError: parameters that got no weights; nothing is sampled until a push completes.
            EngineDiedError: vLLM failed.
        """
        if self._settings.lora_rank:
            raise ValueError("named_weights: this engine was started for adapters; use sync_adapter")
        self._unusable = "the last push of weights did not complete"
        missing = self._call(
            "receive_weights", weights=_with_tied_output(named_weights) if self._tied else named_weights
        )
        if missing:
            raise StaleWeightsError(f"These parameters of the engine's model got no weights: {', '.join(missing[:8])}.")
        return self._pushed()

    def sync_adapter(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
        """Push a LoRA adapter, which replaces the one before. Returns the new version.

        Args:
            config: the adapter's configuration (``LoraConfig.to_dict()``).
            tensors: its weights by name (``get_peft_model_state_dict``).

        Raises:
            StaleWeightsError: modules that vLLM cannot adapt; nothing is sampled until a push completes.
            EngineDiedError: vLLM failed.
        """
        from vllm.lora.request import LoRARequest

        if not self._settings.lora_rank:
            raise ValueError("config: this engine was started without lora_rank; use sync")
        self._unusable, self._adapter = "the last push of an adapter did not complete", None
        number = self.version + 1
        refused = self._call("receive_adapter", number=number, config=config, tensors=tensors)
        if refused or self._core.list_loras() != {number}:
            raise StaleWeightsError(f"vLLM cannot adapt these modules of the model: {', '.join(refused[:8])}.")
        # Were the adapter ever evicted, vLLM would look for this folder and fail, rather than sample without it.
        self._adapter = LoRARequest(f"push-{number}", number, lora_path=f"/nonexistent/adapter-push-{number}")
        return self._pushed()

    def sleep(self) -> None:
        if not self._settings.shared_gpu or self.asleep:
            return
        self._refuse_dead()
        if self._sampling:
            raise RuntimeError("The engine was put to sleep while it sampled.")
        self._unusable = "it gave its memory to the trainer, and nothing was pushed to it since"
        with self._handing_over("give its GPU memory to the trainer"):
            # Level 2 drops the weights, which are pushed again; level 1 keeps them in the machine's memory, those
            # beneath an adapter, which is all that is pushed. Either forgets the cache.
            self._engine.sleep(level=1 if self._settings.lora_rank else 2)
        self.asleep = True

    def wake(self) -> None:
        if not self.asleep:
            return
        self._refuse_dead()
        with self._handing_over("take its GPU memory back from the trainer"):
            if not self._engine.wake_up():
                raise RuntimeError("a part of it still sleeps")
        self.asleep = False

    def close(self) -> None:
        """End vLLM and free its memory; the engine takes nothing more."""
        self._dead = self._dead or "it was closed"
        self._core.shutdown()

    @contextmanager
    def _handing_over(self, what: str) -> Iterator[None]:
        """A failure inside leaves nobody knowing whose the memory is: the engine is dead from then on."""
        try:
            yield
        except Exception as error:
            self._dead = (" ".join(str(error).split()) or type(error).__name__)[:600]
            raise EngineDiedError(
                f"vLLM could not {what}: {self._dead.rstrip('.')}. The checkpoints so far are kept. The trainer's "
                "weights and the optimizer's state have to fit beside vLLM's share of the GPU's memory: lower "
                f"TROLL_ROLLOUT_MEMORY_SHARE, which is {self._settings.memory_share:g}, or run the job with "
                'rollout_engine "transformers".'
            ) from error

    def _pushed(self) -> int:
        if not self._engine.reset_prefix_cache():
            raise StaleWeightsError("The prefix cache of the old weights could not be reset.")
        self._unusable = None
        self.version += 1
        return self.version

    def _call(self, method: str, **arguments: Any) -> list[str]:
        """What the workers' ``method`` returns, put together."""
        self._refuse_dead()
        if self.asleep:
            raise RuntimeError("Weights were pushed while the engine slept.")
        if self._sampling:
            raise RuntimeError("Weights were pushed while the engine sampled: its answers would be of two policies.")
        with _Dying(self):
            parts = self._engine.collective_rpc(method, kwargs=arguments)
        return sorted({name for part in parts for name in part})

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        self._refuse_dead()
        if self._unusable:
            raise StaleWeightsError(f"The engine has nothing to sample from: {self._unusable}.")
        lengths = [len(prompt) for prompt in prompts]
        if any(length >= self._settings.context_length for length in lengths):
            raise PromptsTooLongError(lengths, self._settings.context_length)
        for row, prompt in enumerate(prompts):
            if not prompt or min(prompt) < 0 or max(prompt) >= self._vocabulary_size:
                raise ValueError(f"prompts: row {row} is empty or has ids outside 0 to {self._vocabulary_size - 1}")

    def _check_sampling(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        lowest = ENGINES["vllm"].lowest_temperature
        if 0 < sampling.temperature < lowest:
            raise ValueError(f"temperature: {sampling.temperature} is neither 0 nor at least {lowest}")
        self._check(prompts)
        if sampling.grammar and not all(map(sampling.grammar.begins_at_once, prompts)):
            raise ValueError("sampling: vLLM holds answers to a grammar from their first token, and these reason first")

    def _refuse_dead(self) -> None:
        if self._dead:
            raise EngineDiedError(f"vLLM takes no more work: {self._dead}.")

    def _parameters(self, sampling: Sampling, prompt_length: int, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        structured = None
        if sampling.grammar is not None:
            structured = StructuredOutputsParams(json=sampling.grammar.schema)
            # Otherwise set by the part of vLLM that requests do not go through here.
            structured._backend = GRAMMARS
        return SamplingParams(
            structured_outputs=structured,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=-1,
            min_p=0.0,
            seed=seed,
            max_tokens=min(sampling.max_tokens, self._settings.context_length - prompt_length),
            stop_token_ids=self._stop_ids,
            ignore_eos=True,
            logprobs=self.top_log_probs if sampling.top else 0,
            detokenize=False,
        )

    def _run(self, requests: Sequence[tuple[Sequence[int], Any]]) -> Generator[tuple[int, PendingRollout]]:
        """Answers to requests of a prompt and its ``SamplingParams``, each with its request's index, as they end."""
        waiting: dict[str, tuple[int, PendingRollout]] = {}
        self._sampling = True
        try:
            with _Dying(self):
                for index, (prompt, parameters) in enumerate(requests):
                    held = parameters.structured_outputs is not None
                    waiting[self._submit(prompt, parameters)] = index, PendingRollout(held)
            while waiting:
                ended = []
                with _Dying(self):
                    for output in self._core.get_output().outputs:
                        waiting[output.request_id][1].add(output)
                        if output.finish_reason is not None:
                            ended.append(output.request_id)
                for name in ended:
                    yield waiting.pop(name)
        finally:
            self._sampling = False
            if waiting and not self._dead:
                self._core.abort_requests(list(waiting))

    def _submit(self, prompt: Sequence[int], parameters: Any) -> str:
        """Hand a request to vLLM; its name."""
        from vllm.v1.engine import EngineCoreRequest

        self._requests += 1
        name = str(self._requests)
        self._core.add_request(
            EngineCoreRequest(
                request_id=name,
                prompt_token_ids=list(prompt),
                mm_features=None,
                sampling_params=parameters,
                pooling_params=None,
                arrival_time=0.0,
                lora_request=self._adapter,
                # Were the cache not reset, it still could not be read under other weights.
                cache_salt=str(self.version),
                data_parallel_rank=None,
            )
        )
        return name


class _Dying:
    """Any failure inside leaves vLLM in an unknown state: the engine is dead from then on, or until better weights."""

    def __init__(self, engine: VLLMEngine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if error is None or isinstance(error, StaleWeightsError | GrammarFailedError):
            return
        reason = " ".join(str(error).split()) or type(error).__name__
        self._engine._dead = reason[:600]
        # Out of memory has a remedy of its own, which the loop names.
        if isinstance(error, Exception) and not isinstance(error, torch.OutOfMemoryError):
            raise EngineDiedError(
                f"vLLM died at work: {reason[:600]} The checkpoints so far are kept. If it happens again, lower "
                'max_completion_tokens or batch_size, or run the job with rollout_engine "transformers".'
            ) from error


def _check_split(policy: Policy, tensor_parallel: int) -> None:
    """Refuse what cannot be split, in the words of who set it."""
    if tensor_parallel > 1 and policy.device.type != "cuda":
        # vLLM's shared memory on a CPU has the same name for all jobs of a machine, and outlives a killed one.
        message = "TROLL_ROLLOUT_TENSOR_PARALLEL splits vLLM's weights over GPUs, and this machine has none."
        raise RunError("engine_unavailable", message, exit_code=ExitCode.UNAVAILABLE)
    heads = getattr(policy.model.config.get_text_config(), "num_attention_heads", tensor_parallel)
    if heads % tensor_parallel:
        message = f"The model has {heads} attention heads, which TROLL_ROLLOUT_TENSOR_PARALLEL={tensor_parallel} "
        raise RunError("engine_unavailable", message + "does not divide.", exit_code=ExitCode.UNAVAILABLE)


def _check_grammar(grammar: Grammar | None, prompts: Sequence[Sequence[int]]) -> None:
    """Refuse what vLLM cannot hold to a grammar."""
    if grammar is not None and not all(grammar.begins_at_once(prompt) for prompt in prompts):
        raise RunError(
            "invalid_hyperparameters",
            "vLLM cannot hold a model that reasons first to a response_format here. Set rollout_engine to "
            '"transformers", leave response_format out, or have the chat template begin without reasoning '
            "(chat_template_kwargs).",
            param="hyperparameters.rollout_engine",
        )


def seed_of(seed: int, prompt: int, sample: int) -> int:
    """The random seed of one sample: 63 bits that no two samples of a step are likely to share."""
    return int(np.random.SeedSequence((seed, prompt, sample)).generate_state(1, np.uint64)[0] >> 1)


def _with_tied_output(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The weights with the output layer named beside the embeddings it is tied to.

    vLLM may keep a packed copy of the output layer, and would leave that copy as it was.
    """
    tied: list[Tensor] = []
    named = False
    for name, tensor in weights:
        named = named or name.endswith("lm_head.weight")
        if name.endswith(_EMBEDDINGS):
            tied.append(tensor)
        yield name, tensor
    if not named:
        if len(tied) != 1:
            raise StaleWeightsError(
                "named_weights: the output layer is tied to the embeddings, and neither is among them."
            )
        yield "lm_head.weight", tied[0]
