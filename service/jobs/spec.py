"""The frozen specification a job was accepted with, and the run a worker makes of it.

``Hyperparameters`` and ``SupervisedHyperparameters`` are what a user may ask for; ``resolve`` and
``resolve_supervised`` turn every ``"auto"`` into the value that will be used, so that what a job shows is what it runs.
``JobSpec`` is stored with the job and never changes; its ``method`` says what is done with the rows. ``RunSpec`` adds
what only a worker knows (where files and checkpoints are) and is all that the training child ever sees.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.contracts.engines import ENGINES, MEMORY_SHARE, EngineName, engines_that
from service.contracts.response_format import ResponseFormat
from service.graders.schemas import Grader
from service.graders.settings import GraderSettings
from service.jobs.integrations import Integration

Auto = Literal["auto"]
AUTO: Auto = "auto"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Shared(_Frozen):
    """What every method takes. OpenAI's names come first; the rest are this service's own."""

    batch_size: Annotated[int, Field(ge=1, le=1024)] | Auto = AUTO
    """Rows of the training file per step."""
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] | Auto = AUTO
    """Scales the default learning rate, the method's or LoRA's. Where ``learning_rate`` is given, it is ignored, and
    shows how many times the default that is."""
    n_epochs: Annotated[int, Field(ge=1, le=50)] | Auto = AUTO
    """Passes over the training file; the last step trains on what is left of them. Where ``n_steps`` is given, it
    is ignored, and shows the passes that the steps begin."""
    n_steps: Annotated[int, Field(ge=1, le=100_000)] | Auto = AUTO
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = AUTO
    lora_rank: Annotated[int, Field(ge=0, le=512)] = 0
    """Rank of the adapters that are trained on every linear layer but the output layer; 0 trains all weights."""
    lora_alpha: Annotated[int, Field(ge=1, le=4096)] | Auto = AUTO
    """LoRA: an adapter's output is multiplied by ``lora_alpha / lora_rank``."""
    gradient_checkpointing: Literal["gpu", "always", "never"] = "gpu"
    """Where layers are computed again for the backward pass instead of being remembered; no number depends on it."""
    eval_interval: Annotated[int, Field(ge=1, le=100_000)] | Auto = AUTO
    """Steps between evaluations on the validation file; each evaluation also saves a checkpoint."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    chat_template_kwargs: dict[str, Any] = {}
    """What the model's chat template is told beside the messages, in training, evaluation and chats with the result."""

    @property
    def template_values(self) -> dict[str, Any]:
        """``chat_template_kwargs`` and what else the job tells the template, whether it reads it or not."""
        return dict(self.chat_template_kwargs)


class Hyperparameters(_Shared):
    """Hyperparameters of reinforcement as a user gives them."""

    compute_multiplier: Annotated[float, Field(gt=1e-5, le=10)] | Auto = AUTO
    """Scales the default of 8 rollouts per prompt. Where ``group_size`` is given, it is ignored, and shows how many
    times the default that is."""
    eval_samples: Annotated[int, Field(ge=1, le=64)] | Auto = AUTO
    """Answers sampled per validation row."""
    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"
    """What the chat template is told under this name; without effect where it does not read it."""

    @property
    def template_values(self) -> dict[str, Any]:
        effort = {} if self.reasoning_effort == "default" else {"reasoning_effort": self.reasoning_effort}
        return effort | self.chat_template_kwargs

    objective: Literal["troll", "clip", "dppo"] = "troll"
    """The policy objective: TROLL's trust-region projection, PPO's clipping, or DPPO's masking of tokens."""
    kl_bound: Annotated[float, Field(gt=0, le=10)] = 0.05
    """TROLL: bound of the per-token KL divergence to the old policy, in nats."""
    alpha: Annotated[float, Field(ge=0, le=100)] = 1.0
    """TROLL: weight of the regression onto the projected policy."""
    max_tokens_kept: Annotated[int, Field(ge=1, le=1024)] = 64
    """TROLL: most tokens kept of one position's distribution."""
    dropped_mass: Annotated[float, Field(ge=0, lt=0.5)] = 1e-5
    """TROLL: probability mass that may be left out of a kept distribution."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Clip: lower clipping distance of the probability ratio."""
    clip_high: Annotated[float, Field(gt=0, le=10)] = 0.2
    """Clip: upper clipping distance of the probability ratio."""
    dppo_divergence: Literal["tv", "kl"] = "tv"
    """DPPO: how far a token has moved, by total variation or KL divergence of "this token, or another"."""
    dppo_threshold: Annotated[float, Field(gt=0, le=10)] | Auto = AUTO
    """DPPO: tokens beyond it that would move further out have no gradient; 0.2 for tv, 0.05 for kl."""
    advantage: Literal["grpo", "dr_grpo", "rloo"] = "grpo"
    """How rewards of a group become advantages."""
    aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"] = (
        "token-mean"
    )
    """How token losses become the loss of a batch."""
    group_size: Annotated[int, Field(ge=2, le=256)] | Auto = AUTO
    """Rollouts per prompt."""
    mini_batches: Annotated[int, Field(ge=1, le=64)] | Auto = AUTO
    """Optimizer updates made of one step's rollouts."""
    warmup_steps: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Steps over which the learning rate rises; all updates of a step have the same."""
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Sampling temperature of rollouts; the trust region is measured at this temperature."""
    eval_temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Sampling temperature of evaluations; 0 is greedy."""
    max_completion_tokens: Annotated[int, Field(ge=1, le=131_072)] | Auto = AUTO
    """Tokens of the longest answer. More than the context leaves beside the shortest prompt is lowered to that."""
    rollout_engine: EngineName | Auto = AUTO
    """What samples the answers. ``auto`` is what the operator set as ``TROLL_ROLLOUT_ENGINE``."""
    old_policy: Literal["trainer", "sampler"] = "trainer"
    """Where the old policy's distributions come from: the trainer's own forward, or the sampler (vLLM only)."""
    mismatch_correction: Literal["sequence-mask", "token-truncate", "none"] = "token-truncate"
    """How answers count that the sampler and the trainer's old policy find unequally likely: importance weights of
    tokens, cut at the cap; of whole answers, dropped above the cap; or none."""
    mismatch_cap: Annotated[float, Field(gt=1, le=1000)] | Auto = AUTO
    """Largest importance weight: 3 for sequences, 2 for tokens."""
    max_staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """How many steps older than the trained weights those may be that sampled the answers. With 1, the answers of the
    next step are sampled while a step is trained."""


class SupervisedHyperparameters(_Shared):
    """Hyperparameters of supervised fine-tuning as a user gives them."""

    warmup_steps: Annotated[int, Field(ge=0, le=10_000)] | Auto = AUTO
    """Steps over which the learning rate rises: a twentieth of ``n_steps``."""
    schedule: Literal["linear", "constant"] = "linear"
    """What the learning rate does after that: falls to nearly 0 at the last step, or stays."""


class ResolvedHyperparameters(Hyperparameters):
    """Hyperparameters with every ``"auto"`` replaced by the value the run uses."""

    batch_size: int
    learning_rate_multiplier: float
    n_epochs: int
    compute_multiplier: float
    eval_interval: int
    eval_samples: int
    group_size: int
    mini_batches: int
    learning_rate: float
    lora_alpha: int
    n_steps: int
    max_completion_tokens: int
    rollout_engine: EngineName
    mismatch_cap: float
    dppo_threshold: float


class ResolvedSupervisedHyperparameters(SupervisedHyperparameters):
    """Hyperparameters of supervised fine-tuning with every ``"auto"`` replaced by the value the run uses."""

    batch_size: int
    learning_rate_multiplier: float
    n_epochs: int
    n_steps: int
    learning_rate: float
    lora_alpha: int
    eval_interval: int
    warmup_steps: int


DEFAULT_LEARNING_RATE = 1e-6
DEFAULT_SUPERVISED_LEARNING_RATE = 1e-5
LORA_LEARNING_RATE_FACTOR = 10
"""How many times the default learning rate of all weights is that of adapters."""
DEFAULT_LORA_ALPHA = 32
"""The same for every rank: what a step changes then hardly depends on the rank, nor does the best learning rate."""
DEFAULT_GROUP_SIZE = 8
DEFAULT_DPPO_THRESHOLDS = {"tv": 0.2, "kl": 0.05}
DEFAULT_MISMATCH_CAPS = {"sequence-mask": 3.0, "token-truncate": 2.0, "none": 2.0}


def resolve(
    asked: Hyperparameters, *, training_rows: int, rollout_engine: EngineName = "transformers"
) -> ResolvedHyperparameters:
    """Replace every ``"auto"`` for a training file of ``training_rows`` rows and the operator's ``rollout_engine``."""
    batch_size = min(_given(asked.batch_size, 32), training_rows)
    n_epochs = _given(asked.n_epochs, 1)
    n_steps = _given(asked.n_steps, math.ceil(training_rows * n_epochs / batch_size))
    compute = _given(asked.compute_multiplier, 1.0)
    group_size = _given(asked.group_size, max(2, round(DEFAULT_GROUP_SIZE * compute)))
    resolved = {
        "batch_size": batch_size,
        "n_epochs": n_epochs if asked.n_steps == AUTO else math.ceil(n_steps * batch_size / training_rows),
        "n_steps": n_steps,
        **_learning_rate(asked, DEFAULT_LEARNING_RATE),
        "lora_alpha": _given(asked.lora_alpha, DEFAULT_LORA_ALPHA),
        "compute_multiplier": compute if asked.group_size == AUTO else group_size / DEFAULT_GROUP_SIZE,
        "group_size": group_size,
        "mini_batches": min(_given(asked.mini_batches, 8), batch_size),
        "eval_interval": _given(asked.eval_interval, max(1, math.ceil(n_steps / 10))),
        "eval_samples": _given(asked.eval_samples, 1),
        "max_completion_tokens": _given(asked.max_completion_tokens, 1024),
        "rollout_engine": _given(asked.rollout_engine, rollout_engine),
        "mismatch_cap": _given(asked.mismatch_cap, DEFAULT_MISMATCH_CAPS[asked.mismatch_correction]),
        "dppo_threshold": _given(asked.dppo_threshold, DEFAULT_DPPO_THRESHOLDS[asked.dppo_divergence]),
    }
    return ResolvedHyperparameters.model_validate(asked.model_dump() | resolved)


def resolve_supervised(asked: SupervisedHyperparameters, *, training_rows: int) -> ResolvedSupervisedHyperparameters:
    """Replace every ``"auto"`` for a training file of ``training_rows`` rows."""
    batch_size = min(_given(asked.batch_size, 16), training_rows)
    n_epochs = _given(asked.n_epochs, 3)
    n_steps = _given(asked.n_steps, math.ceil(training_rows * n_epochs / batch_size))
    resolved = {
        "batch_size": batch_size,
        "n_epochs": n_epochs if asked.n_steps == AUTO else math.ceil(n_steps * batch_size / training_rows),
        "n_steps": n_steps,
        **_learning_rate(asked, DEFAULT_SUPERVISED_LEARNING_RATE),
        "lora_alpha": _given(asked.lora_alpha, DEFAULT_LORA_ALPHA),
        "eval_interval": _given(asked.eval_interval, max(1, math.ceil(n_steps / 10))),
        "warmup_steps": _given(asked.warmup_steps, math.ceil(n_steps / 20)),
    }
    return ResolvedSupervisedHyperparameters.model_validate(asked.model_dump() | resolved)


DECIDED_BY = {
    "batch_size": "the training file has no more rows",
    "n_epochs": "n_steps decides",
    "mini_batches": "batch_size is no more",
    "learning_rate_multiplier": "learning_rate decides",
    "compute_multiplier": "group_size decides",
}
"""Why a hyperparameter may have another value than it was given."""


def overruled(
    asked: Hyperparameters | SupervisedHyperparameters,
    resolved: ResolvedHyperparameters | ResolvedSupervisedHyperparameters,
) -> list[str]:
    """What was asked for and is not what will be used, in sentences."""
    given = {name: getattr(asked, name) for name in DECIDED_BY if name in asked.model_fields_set}
    used = {name: getattr(resolved, name) for name in given}
    return [
        f"{name} is {used[name]:g} and not {value:g}: {DECIDED_BY[name]}"
        for name, value in given.items()
        if value not in (AUTO, used[name])
    ]


def conflicts(
    resolved: ResolvedHyperparameters, *, processes: int = 1, tensor_parallel: int = 1
) -> list[tuple[str, str]]:
    """Hyperparameters that do not go together: the name of the one to change, and why, in a sentence.

    ``processes`` train the model together, and each ``tensor_parallel`` of them share one engine that can be split.
    """
    found = []
    engine, ahead = ENGINES[resolved.rollout_engine], resolved.max_staleness > 0
    if resolved.old_policy == "sampler" and not engine.gives_distributions:
        able = engines_that(lambda each: each.gives_distributions)
        found.append(("old_policy", f"Only rollout_engine {able} gives the sampler's distributions."))
    if ahead and not engine.samples_ahead_in_processes and processes > 1:
        why = "A model that is trained in several processes cannot sample ahead by itself."
        able = engines_that(lambda each: each.samples_ahead_in_processes)
        found.append(("max_staleness", f"{why} Set max_staleness to 0, or rollout_engine to {able}."))
    if ahead and engine.is_split and tensor_parallel > 1:
        why = "An engine that several processes share cannot sample while they train."
        found.append(("max_staleness", f"{why} Set max_staleness to 0."))
    if resolved.objective == "dppo" and resolved.dppo_divergence == "tv" and resolved.dppo_threshold >= 1:
        why = "No total variation exceeds 1, so that no token would be held back."
        found.append(("dppo_threshold", f"{why} Set dppo_threshold below 1, or dppo_divergence to 'kl'."))
    for name in ("temperature", "eval_temperature"):
        if 0 < getattr(resolved, name) < engine.lowest_temperature:
            why = f"{engine.title} would sample at {engine.lowest_temperature} instead."
            able = engines_that(lambda each: not each.lowest_temperature)
            found.append((name, f"{why} Set {name} to at least that, or rollout_engine to {able}."))
    return found


def _learning_rate(asked: _Shared, of_all_weights: float) -> dict[str, float]:
    default = of_all_weights * (LORA_LEARNING_RATE_FACTOR if asked.lora_rank else 1)
    if asked.learning_rate != AUTO:
        times = float(f"{asked.learning_rate / default:.12g}")
        return {"learning_rate": asked.learning_rate, "learning_rate_multiplier": times}
    multiplier = float(_given(asked.learning_rate_multiplier, 1.0))
    return {"learning_rate": default * multiplier, "learning_rate_multiplier": multiplier}


def _given(value: Any, default: Any) -> Any:
    return default if value == AUTO else value


class Reinforcement(_Frozen):
    """Answers are sampled and graded, and the better ones become more likely."""

    type: Literal["reinforcement"] = "reinforcement"
    grader: Grader
    hyperparameters: ResolvedHyperparameters
    response_format: dict[str, Any] | None = None
    """As it was sent."""

    @field_validator("response_format")
    @classmethod
    def _is_known(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            ResponseFormat.model_validate(value or {"type": "text"})
        except ValidationError as error:
            raise ValueError("this is not a response format that is known here") from error
        return value

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """What answers are held to."""
        return None if self.response_format is None else ResponseFormat.model_validate(self.response_format).schema_


class Supervised(_Frozen):
    """The assistant's messages of the rows become more likely."""

    type: Literal["supervised"] = "supervised"
    hyperparameters: ResolvedSupervisedHyperparameters


Method = Annotated[Reinforcement | Supervised, Field(discriminator="type")]


class JobSpec(_Frozen):
    """What the user asked for, checked and resolved; stored with the job and never changed."""

    model: str
    training_file: str
    validation_file: str | None
    method: Method
    seed: int = Field(ge=0, le=2**31 - 1)
    suffix: str | None = None
    integrations: list[Integration] = []

    def with_answers_of(self, most: int) -> "JobSpec":
        """The same with answers of ``most`` tokens at most, where longer ones were asked for."""
        method = self.method
        if isinstance(method, Supervised) or method.hyperparameters.max_completion_tokens <= most:
            return self
        shorter = method.hyperparameters.model_copy(update={"max_completion_tokens": most})
        return self.model_copy(update={"method": method.model_copy(update={"hyperparameters": shorter})})


class RunSpec(_Frozen):
    """One attempt at a job, as the supervisor hands it to the training child."""

    job_id: str
    attempt: int
    job: JobSpec
    model_path: Path
    """Folder of the base model."""
    training_path: Path
    validation_path: Path | None
    checkpoints: list[Path]
    """Checkpoint folders of earlier attempts, newest first; the newest intact one is resumed from."""
    output_dir: Path
    """Folder of this attempt; checkpoints and the final model are written beneath it."""
    checkpoints_kept: int = 3
    """How many of the best checkpoints are kept beside the newest."""
    rollout_tensor_parallel: int = 1
    """How many of the job's processes share one vLLM engine."""
    rollout_memory_share: float = MEMORY_SHARE
    """Share of the GPU's memory for vLLM; the trainer needs the rest."""
    now: AwareDatetime | None = None
    """When it is for chat templates that ask, the same in every attempt; None is when they ask."""
    graders: GraderSettings = GraderSettings()
    """What the operator allows of graders: the jail, the judges, the scoring services."""
