"""What samples a job's answers, and how the weights that are trained reach it.

The transformers engine samples from the very model that is trained, adapters included, or from a copy that can sample
meanwhile. vLLM has weights of its own: they, or the adapter alone where one is trained, are pushed from memory after
every step, and a probe makes sure that both sides still give the same tokens the same log-probabilities.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel

from service.jobs.spec import ResolvedHyperparameters, conflicts
from workers.data.prompts import Prompt
from workers.errors import RunError
from workers.modeling import distributed, lora, ranks, sharding
from workers.modeling.policy import Policy
from workers.rollouts import probe
from workers.rollouts.engine import Sampling
from workers.rollouts.grammar import Grammar
from workers.rollouts.transformers import TransformersEngine
from workers.rollouts.vllm.engine import VLLMEngine
from workers.rollouts.vllm.start import EngineSettings
from workers.wire import ExitCode

PROBES, PROBE_TOKENS, PROBE_ANSWER = 4, 128, 8


@dataclass(frozen=True)
class Sampler:
    engine: VLLMEngine | TransformersEngine
    policy: Policy
    probes: list[list[int]]
    """Token ids of the prompts that are scored by both sides after a push."""

    def push(self) -> None:
        """Bring the engine's weights up to date.

        Raises ``WeightsOutOfSyncError`` when the engine then disagrees with the trainer, ``StaleWeightsError`` and
        ``EngineDiedError`` as the engine does.
        """
        if isinstance(self.engine, TransformersEngine):
            self.engine.sync(self.policy.model.named_parameters())
            return
        model, adapter = self.policy.model, self.policy.adapter
        if adapter is None:
            version = self.engine.sync(sharding.whole(model.state_dict().items()))
        else:
            tensors = dict(sharding.whole(lora.tensors(model).items()))
            version = self.engine.sync_adapter(adapter.to_dict(), tensors)
        tolerance = probe.tolerance_for(_dtype(self.policy), self.policy.model.config.model_type)
        probe.compare(self.engine.score(self.probes), self.policy.score(self.probes), tolerance, version)


def make_sampler(
    policy: Policy,
    hyperparameters: ResolvedHyperparameters,
    prompts: Sequence[Prompt],
    tensor_parallel: int = 1,
    grammar: Grammar | None = None,
) -> Sampler:
    """The engine that the job asks for, with the policy's weights; vLLM's is split over ``tensor_parallel`` ranks.

    Answers to the prompts can be held to ``grammar``.

    Raises ``EngineUnavailableError`` and ``RunError``.
    """
    longest = max(len(prompt.token_ids) for prompt in prompts)
    probes = [prompt.token_ids[:PROBE_TOKENS] for prompt in prompts if len(prompt.token_ids) > 1][:PROBES]
    engine: VLLMEngine | TransformersEngine
    if hyperparameters.rollout_engine == "vllm":
        _check_split(policy, tensor_parallel)
        _check_grammar(grammar, prompts)
        from_sampler = hyperparameters.old_policy == "sampler"
        settings = EngineSettings(
            context_length=min(policy.context_length, longest + hyperparameters.max_completion_tokens),
            dtype=_dtype(policy),
            top_log_probs=min(hyperparameters.max_tokens_kept, policy.vocabulary_size) if from_sampler else 0,
            ranks=distributed.size(),
            tensor_parallel=tensor_parallel,
            lora_rank=hyperparameters.lora_rank,
            lora_modules=lora.module_names(policy.adapter) if policy.adapter else (),
            structured=grammar is not None,
        )
        engine = VLLMEngine(policy.folder, policy.stop_ids, settings)
    else:
        model = copy_of(policy.model) if hyperparameters.max_staleness else policy.model
        engine = TransformersEngine(model, policy.stop_ids, policy.context_length)
    sampler = Sampler(engine, policy, probes)
    sampler.push()
    if isinstance(engine, TransformersEngine) and probes:
        _check_own_answers(engine, policy, probes)
    return sampler


def _check_own_answers(engine: TransformersEngine, policy: Policy, probes: list[list[int]]) -> None:
    """Raises ``RunError`` where tokens, sampled in a batch, are not as likely as when they are trained on."""
    answers = [group[0] for group in engine.generate(probes, 1, Sampling(1.0, PROBE_ANSWER, seed=0))]
    scores = policy.score([[*prompt, *answer.token_ids] for prompt, answer in zip(probes, answers, strict=True)])
    trained = [score[len(prompt) - 1 :] for prompt, score in zip(probes, scores, strict=True)]
    tolerance = probe.tolerance_for(_dtype(policy), policy.model.config.model_type)
    try:
        probe.compare([answer.log_probs for answer in answers], trained, tolerance)
    except probe.WeightsOutOfSyncError as error:
        raise RunError(
            "weights_out_of_sync",
            "The model gives its tokens other probabilities where it samples them than where it is trained on them: "
            f"{error.difference.mean:.3g} nats apart on average, {error.difference.worst:.3g} at worst. Training would "
            "learn from answers of another model. Use a model of another family, and report this one's with the "
            "version of transformers.",
        ) from error


def check_sampler(hyperparameters: ResolvedHyperparameters, tensor_parallel: int) -> None:
    """Refuse, before a model is loaded, what does not go together here; the API did so by its own settings.

    Raises ``RunError``.
    """
    for name, why in conflicts(hyperparameters, processes=ranks.number(), tensor_parallel=tensor_parallel):
        raise RunError("invalid_hyperparameters", why, param=f"method.reinforcement.hyperparameters.{name}")


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


def _check_grammar(grammar: Grammar | None, prompts: Sequence[Prompt]) -> None:
    """Refuse what vLLM cannot hold to a grammar."""
    if grammar is not None and not all(grammar.begins_at_once(prompt.token_ids) for prompt in prompts):
        raise RunError(
            "invalid_hyperparameters",
            "vLLM cannot hold a model that reasons first to a response_format here. Set rollout_engine to "
            '"transformers", leave response_format out, or have the chat template begin without reasoning '
            "(chat_template_kwargs).",
            param="method.reinforcement.hyperparameters.rollout_engine",
        )


def copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own weights, but for those that are not trained, which both share."""
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, frozen)


def _dtype(policy: Policy) -> Literal["float32", "bfloat16"]:
    return "bfloat16" if policy.device.type == "cuda" else "float32"
