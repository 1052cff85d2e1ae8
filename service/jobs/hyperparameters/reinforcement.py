"""The hyperparameters of reinforcement."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from service.contracts.engines import ENGINES, EngineName, engines_that
from service.jobs.hyperparameters.option import AUTO, Asked, Auto, Installation, Option, Overrule, asked_of
from service.jobs.hyperparameters.shared import SharedHyperparameters, passes, rate, rows_per_step

DEFAULT_GROUP_SIZE = 8
DPPO_THRESHOLDS = {"tv": 0.2, "kl": 0.05}
CLIP_LOW = {"gspo": 3e-4}
CLIP_HIGH = {"gspo": 4e-4, "cispo": 4.0}
CLIP = 0.2
CRITIC_LEARNING_RATE_FACTOR = 10
"""How many times the policy's learning rate is the critic's."""
KL_ESTIMATORS = {"loss": "k3", "reward": "k1"}
MismatchCorrection = Literal[
    "none", "token-truncate", "token-mask", "sequence-truncate", "sequence-mask", "geometric-mask"
]
MISMATCH_CAPS: dict[MismatchCorrection, float] = {
    "none": 2.0,
    "token-truncate": 2.0,
    "token-mask": 2.0,
    "sequence-truncate": 3.0,
    "sequence-mask": 3.0,
    "geometric-mask": 1.01,
}


def _times_the_group(multiplier: float, known: Any) -> float:
    return multiplier if known.group_size == AUTO else known.group_size / DEFAULT_GROUP_SIZE


def _times_the_policys(known: Any) -> float:
    return float(f"{CRITIC_LEARNING_RATE_FACTOR * known.learning_rate:.12g}")


def _holds_tokens_back(h: "ResolvedHyperparameters", at: Installation) -> str | None:
    if h.objective != "dppo" or h.dppo_divergence != "tv" or h.dppo_threshold < 1:
        return None
    why = "No total variation exceeds 1, so that no token would be held back."
    return f"{why} Set dppo_threshold below 1, or dppo_divergence to 'kl'."


def _is_the_objectives_ratio(h: "ResolvedHyperparameters", at: Installation) -> str | None:
    if h.objective == "gspo" and h.ratio == "token":
        return "GSPO is the objective of the sequence's ratio. Leave ratio out, or set objective to 'clip'."
    if h.objective == "dppo" and h.ratio == "sequence":
        return "DPPO holds tokens back by how far each has moved itself. Leave ratio out, or set another objective."
    return None


def _has_something_to_compare(h: "ResolvedHyperparameters", at: Installation) -> str | None:
    if h.group_size > 1 or h.advantage == "gae":
        return None
    return "An answer alone has nothing to be compared with. Set group_size to 2 or more, or advantage to 'gae'."


def _has_answers_to_tell_apart(h: "ResolvedHyperparameters", at: Installation) -> str | None:
    if not h.filter_groups or h.group_size > 1:
        return None
    return "With one answer to each prompt every prompt would be left out. Set group_size to 2 or more."


def _lets_the_policy_learn(h: "ResolvedHyperparameters", at: Installation) -> str | None:
    if h.advantage != "gae" or h.critic_warmup_steps < h.n_steps:
        return None
    return f"In none of the {h.n_steps} steps would the policy be trained. Lower it, or raise n_steps."


def _reads_every_answer(h: "ResolvedHyperparameters", at: Installation) -> str | None:
    if not (h.mask_truncated and h.kl_coefficient and h.kl_in == "reward") or h.advantage == "gae":
        return None
    why = "An answer that is not learned from is not read, and its KL divergence is a part of its group's rewards."
    return f"{why} Set kl_in to 'loss', or mask_truncated to false."


def _is_a_part_of_the_answer(h: "ResolvedHyperparameters", at: Installation) -> str | None:
    if h.overlong_buffer <= h.max_completion_tokens:
        return None
    return f"It is a part of the longest answer, which has {h.max_completion_tokens} tokens. Lower it."


def _can_be_sampled_at(name: str, h: "ResolvedHyperparameters") -> str | None:
    engine = ENGINES[h.rollout_engine]
    if not 0 < getattr(h, name) < engine.lowest_temperature:
        return None
    why = f"{engine.title} would sample at {engine.lowest_temperature} instead."
    able = engines_that(lambda each: not each.lowest_temperature)
    return f"{why} Set {name} to at least that, or rollout_engine to {able}."


def _processes_sample_ahead(h: "ResolvedHyperparameters", at: Installation) -> str | None:
    if not h.max_staleness or at.processes == 1 or ENGINES[h.rollout_engine].samples_ahead_in_processes:
        return None
    why = "A model that is trained in several processes cannot sample ahead by itself."
    able = engines_that(lambda each: each.samples_ahead_in_processes)
    return f"{why} Set max_staleness to 0, or rollout_engine to {able}."


def _shared_engine_samples_ahead(h: "ResolvedHyperparameters", at: Installation) -> str | None:
    if not h.max_staleness or at.tensor_parallel == 1 or not ENGINES[h.rollout_engine].is_split:
        return None
    return "An engine that several processes share cannot sample while they train. Set max_staleness to 0."


class ResolvedHyperparameters(SharedHyperparameters):
    """Hyperparameters with every ``"auto"`` replaced by the value the run uses."""

    default_learning_rate: ClassVar[float] = 1e-6

    batch_size: Annotated[int, rows_per_step("prompts per step", 32)]
    n_epochs: Annotated[int, passes(1)]
    learning_rate: Annotated[float, rate("AdamW's learning rate", default_learning_rate)]
    compute_multiplier: Annotated[
        float,
        Option(
            doc="OpenAI's name; shows what `group_size` amounts to where that is given",
            auto=Auto(1.0, "1"),
            overrule=Overrule(_times_the_group, "group_size decides"),
            gt=1e-5,
            le=10,
        ),
    ]
    eval_samples: Annotated[int, Option(doc="answers per validation row", auto=Auto(1), ge=1, le=64)]
    reasoning_effort: Annotated[
        Literal["default", "low", "medium", "high"],
        Option(
            doc="told to the chat template, where it reads it; a warning says so where it does not",
            default="default",
        ),
    ]
    objective: Annotated[
        Literal["troll", "clip", "dppo", "gspo", "cispo", "sapo"],
        Option(
            doc=(
                "TROLL's projection, PPO's clipping, [DPPO](https://arxiv.org/abs/2602.04879), "
                "[GSPO](https://arxiv.org/abs/2507.18071), [CISPO](https://arxiv.org/abs/2506.13585) or "
                "[SAPO](https://arxiv.org/abs/2511.20347)"
            ),
            default="troll",
        ),
    ]
    ratio: Annotated[
        Literal["token", "sequence"],
        Option(
            doc="whose probability ratio weighs a token's advantage: its own, or its answer's geometric mean",
            auto=Auto(
                lambda known: "sequence" if known.objective == "gspo" else "token", "`sequence` for GSPO, else `token`"
            ),
            conflicts=(_is_the_objectives_ratio,),
        ),
    ]
    kl_bound: Annotated[
        float,
        Option(
            doc="bound of each token's KL divergence to the sampling policy, in nats",
            applies_to="TROLL",
            default=0.05,
            gt=0,
            le=10,
        ),
    ]
    alpha: Annotated[
        float,
        Option(doc="weight of the regression onto the projected policy", applies_to="TROLL", default=1.0, ge=0, le=100),
    ]
    pessimistic: Annotated[
        bool,
        Option(
            doc=(
                "the worse of the projected ratio and the policy's own counts, as with clipping: what comes back into "
                "the region is not held back"
            ),
            applies_to="TROLL",
            default=False,
        ),
    ]
    max_tokens_kept: Annotated[
        int,
        Option(doc="most tokens kept of one position's distribution", applies_to="TROLL", default=64, ge=1, le=1024),
    ]
    dropped_mass: Annotated[
        float,
        Option(
            doc="probability that may be left out of a kept distribution",
            applies_to="TROLL",
            default=1e-5,
            ge=0,
            lt=0.5,
        ),
    ]
    support: Annotated[
        Literal["union", "old"],
        Option(
            doc="whose most likely tokens a distribution is kept at: both policies', or the old one's",
            applies_to="TROLL",
            default="union",
        ),
    ]
    tail: Annotated[
        Literal["constant", "mass"],
        Option(
            doc="what tokens that are not kept get: 1e-12 each, or what was left out, spread evenly",
            applies_to="TROLL",
            default="constant",
        ),
    ]
    clip_low: Annotated[
        float,
        Option(
            doc="lower distance of the probability ratio",
            applies_to="clip, GSPO",
            auto=Auto(lambda known: CLIP_LOW.get(known.objective, CLIP), "0.2, 3e-4 for GSPO"),
            gt=0,
            lt=1,
        ),
    ]
    clip_high: Annotated[
        float,
        Option(
            doc="upper distance of the probability ratio; with CISPO that of the weight",
            applies_to="clip, GSPO, CISPO",
            auto=Auto(lambda known: CLIP_HIGH.get(known.objective, CLIP), "0.2, 4e-4 for GSPO, 4 for CISPO"),
            gt=0,
            le=10,
        ),
    ]
    dual_clip: Annotated[
        float,
        Option(
            doc="the loss of a token with negative advantage is at most so many times that",
            applies_to="clip",
            default=10.0,
            gt=1,
            le=1e6,
        ),
    ]
    sapo_temperature_pos: Annotated[
        float,
        Option(doc="sharpness of the gate where advantages are positive", applies_to="SAPO", default=1.0, gt=0, le=100),
    ]
    sapo_temperature_neg: Annotated[
        float, Option(doc="and where they are not", applies_to="SAPO", default=1.05, gt=0, le=100)
    ]
    entropy_coefficient: Annotated[
        float, Option(doc="weight of a bonus for the entropy of every token's distribution", default=0.0, ge=0, le=10)
    ]
    kl_coefficient: Annotated[
        float,
        Option(
            doc="weight of the KL divergence to the model that the job began with, the reference; 0 reads none",
            default=0.0,
            ge=0,
            le=100,
        ),
    ]
    kl_in: Annotated[
        Literal["loss", "reward"],
        Option(
            doc="where it counts: in the loss of every update, or in the reward that advantages are made of",
            default="loss",
            conflicts=(_reads_every_answer,),
        ),
    ]
    kl_estimator: Annotated[
        Literal["k1", "k2", "k3"],
        Option(
            doc="how it is [estimated](docs/objective.md#around-the-token) from sampled tokens",
            auto=Auto(lambda known: KL_ESTIMATORS[known.kl_in], "`k3` in the loss, `k1` in the reward"),
        ),
    ]
    dppo_divergence: Annotated[
        Literal["tv", "kl"],
        Option(doc="how far a token has moved: total variation, or KL divergence", applies_to="DPPO", default="tv"),
    ]
    dppo_threshold: Annotated[
        float,
        Option(
            doc="tokens that have moved further get no gradient that takes them further out",
            applies_to="DPPO",
            auto=Auto(lambda known: DPPO_THRESHOLDS[known.dppo_divergence], "0.2 for `tv`, 0.05 for `kl`"),
            gt=0,
            le=10,
            allowed="above 0, to below 1 for `tv`, to 10 for `kl`",
            conflicts=(_holds_tokens_back,),
        ),
    ]
    advantage: Annotated[
        Literal["grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "maxrl", "gae"],
        Option(
            doc=(
                "how rewards become [advantages](docs/objective.md#advantages); `gae` is PPO's, with a critic, "
                "which is a second model"
            ),
            default="grpo",
        ),
    ]
    gae_gamma: Annotated[
        float, Option(doc="discount of what is earned a token later", applies_to="GAE", default=1.0, ge=0, le=1)
    ]
    gae_lambda: Annotated[
        float,
        Option(
            doc="1 compares what an answer earned with the critic's values, less trusts those of later tokens",
            applies_to="GAE",
            default=1.0,
            ge=0,
            le=1,
        ),
    ]
    critic_learning_rate: Annotated[
        float,
        Option(
            doc="AdamW's learning rate of the critic, the same in every step",
            applies_to="GAE",
            auto=Auto(_times_the_policys, "10 × `learning_rate`"),
            gt=0,
            le=1,
        ),
    ]
    critic_warmup_steps: Annotated[
        int,
        Option(
            doc="first steps, in which the critic learns alone; `warmup_steps` begin after them",
            applies_to="GAE",
            default=0,
            ge=0,
            le=10_000,
            conflicts=(_lets_the_policy_learn,),
        ),
    ]
    value_clip: Annotated[
        float,
        Option(
            doc="how far a step's updates move the critic's values towards what was earned",
            applies_to="GAE",
            default=0.5,
            gt=0,
            le=1e6,
        ),
    ]
    aggregation: Annotated[
        Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"],
        Option(doc="how token losses become one loss", default="token-mean"),
    ]
    group_size: Annotated[
        int,
        Option(
            doc="answers per prompt; 1 with GAE alone",
            auto=Auto(
                lambda known: max(2, round(DEFAULT_GROUP_SIZE * known.compute_multiplier)), "8 × `compute_multiplier`"
            ),
            ge=1,
            le=256,
            conflicts=(_has_something_to_compare,),
        ),
    ]
    mini_batches: Annotated[
        int,
        Option(
            doc="optimizer updates per step",
            auto=Auto(8, "8, or `batch_size` if smaller"),
            overrule=Overrule(lambda number, known: min(number, known.batch_size), "batch_size is no more"),
            ge=1,
            le=64,
        ),
    ]
    epochs: Annotated[
        int, Option(doc="times that each answer is learned from: `mini_batches` updates each", default=1, ge=1, le=16)
    ]
    warmup_steps: Annotated[int, Option(doc="steps over which the learning rate rises", default=0, ge=0, le=10_000)]
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Option(doc="after that it stays, or falls, almost to 0 at the last step", default="constant"),
    ]
    temperature: Annotated[
        float,
        Option(
            doc="of sampling for training",
            default=1.0,
            gt=0,
            le=2,
            conflicts=(lambda h, at: _can_be_sampled_at("temperature", h),),
        ),
    ]
    eval_temperature: Annotated[
        float,
        Option(
            doc="of sampling for evaluation; 0 is greedy",
            default=1.0,
            ge=0,
            le=2,
            conflicts=(lambda h, at: _can_be_sampled_at("eval_temperature", h),),
        ),
    ]
    max_completion_tokens: Annotated[
        int,
        Option(doc="longest answer, in tokens; lowered to what the context leaves", auto=Auto(1024), ge=1, le=131_072),
    ]
    mask_truncated: Annotated[
        bool,
        Option(
            doc="nothing is learned from answers that were cut off, which still count in their group", default=False
        ),
    ]
    overlong_buffer: Annotated[
        int,
        Option(
            doc="over the last so many of `max_completion_tokens` the reward falls, by `overlong_penalty` at the end",
            default=0,
            ge=0,
            le=131_072,
            conflicts=(_is_a_part_of_the_answer,),
        ),
    ]
    overlong_penalty: Annotated[
        float,
        Option(doc="what a longest answer loses, where there is an `overlong_buffer`", default=1.0, ge=0, le=1000),
    ]
    rollout_engine: Annotated[
        EngineName,
        Option(
            doc="what samples the answers",
            auto=Auto(lambda known: known.installation.rollout_engine, "the operator's choice"),
        ),
    ]
    old_policy: Annotated[
        Literal["trainer", "sampler"],
        Option(
            doc="whose distributions the trust region is around: the trainer's before the step, or the sampler's",
            default="trainer",
        ),
    ]
    filter_groups: Annotated[
        bool,
        Option(
            doc=(
                "prompts whose answers all earned the same are left out, and further ones sampled in their place "
                "([DAPO](https://arxiv.org/abs/2503.14476)'s dynamic sampling)"
            ),
            default=False,
            conflicts=(_has_answers_to_tell_apart,),
        ),
    ]
    max_refills: Annotated[
        int,
        Option(
            doc="rounds of `batch_size` further prompts that a step samples at most, where it filters",
            default=3,
            ge=0,
            le=16,
        ),
    ]
    target_reward: Annotated[
        float | None,
        Option(
            doc="training ends when the mean reward of an evaluation reaches it",
            default=None,
            allowed="a reward, `null`",
        ),
    ]
    early_stopping_patience: Annotated[
        int,
        Option(
            doc="training ends after so many evaluations in a row without a better mean reward; 0 never ends it",
            default=0,
            ge=0,
            le=10_000,
        ),
    ]
    early_stopping_threshold: Annotated[
        float,
        Option(doc="how much better it has to be than the last better one", default=0.0, ge=0, le=1e6),
    ]
    mismatch_correction: Annotated[
        MismatchCorrection,
        Option(
            doc="what is done about answers that sampler and trainer find unequally likely", default="token-truncate"
        ),
    ]
    mismatch_cap: Annotated[
        float,
        Option(
            doc="largest importance weight of that correction",
            auto=Auto(
                lambda known: MISMATCH_CAPS[known.mismatch_correction],
                "2 for tokens, 3 for sequences, 1.01 for their mean",
            ),
            gt=1,
            le=1000,
        ),
    ]
    max_staleness: Annotated[
        int,
        Option(
            doc=(
                "steps that the sampling weights may be behind; above 0, answers of so many steps are sampled ahead, "
                "while another is trained"
            ),
            default=0,
            ge=0,
            le=16,
            conflicts=(_processes_sample_ahead, _shared_engine_samples_ahead),
        ),
    ]
    partial_rollouts: Annotated[
        bool,
        Option(
            doc=(
                "with `max_staleness` above 1 answers are sampled in as many pieces of `max_completion_tokens`, and go "
                "on with new weights after each step; not those held to a `response_format`. `false`: each answer is "
                "of one policy, as old as it may be"
            ),
            default=True,
        ),
    ]


if TYPE_CHECKING:

    class Hyperparameters(Asked[ResolvedHyperparameters]):
        def __init__(self, **asked: Any) -> None: ...

else:
    Hyperparameters = asked_of(
        ResolvedHyperparameters, "Hyperparameters", "Hyperparameters of reinforcement as a user gives them."
    )
