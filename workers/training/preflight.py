"""What is found out before the first step, so that a job that must fail does so in minutes and not after hours.

Room on the disk is checked as soon as the model is known, memory by training on the longest answer there can be without
changing anything, and the rewards of the first step's answers before anything is learned from them.
"""

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from statistics import fmean

import torch
from torch import Tensor

from service.graders.schemas import Grader
from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from service.jobs.spec import RunSpec
from workers import wire
from workers.errors import RunError, is_out_of_memory
from workers.modeling import distributed
from workers.modeling.model_folder import weight_files
from workers.modeling.policy import Policy
from workers.rollouts.engine import Rollout
from workers.rollouts.grammar import Grammar
from workers.training.data.batch import MicroBatch, Sample, TrainingSample
from workers.training.optim import objective, update
from workers.training.optim.critic import Critic, critic_loss
from workers.training.optim.update import MiniBatch
from workers.training.processes.channel import Channel
from workers.training.sampling.grammar import anything

MOMENTS = 2
"""Tensors that AdamW keeps of each parameter."""


@dataclass(frozen=True)
class DiskRoom:
    """Bytes that a job will have on disk at most, and that are free for it."""

    needed: int
    free: int


@dataclass(frozen=True)
class WorstCase:
    """The largest micro-batch that training can meet: how much it is and how long it took."""

    answers: int
    tokens: int
    """Of all answers with their prompts."""
    seconds: float


def check_disk_room(
    spec: RunSpec, policy: Policy, steps_left: int, eval_interval: int, critic: Critic | None = None
) -> DiskRoom:
    """Raises ``RunError`` where the checkpoints that will be kept and the final model cannot fit.

    A resumed job has written most of that already and only needs room for its next checkpoint and the final model.
    """
    folder = next(path for path in (spec.output_dir, *spec.output_dir.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    model, state = _model_bytes(policy), _state_bytes(policy, critic)
    checkpoints = math.ceil(steps_left / eval_interval)
    if spec.checkpoints:
        needed = min(checkpoints, 1) * (model + state) + model
    else:
        # The oldest that can be resumed from gives up its state once the newest is complete.
        resumable = min(checkpoints, wire.RESUMABLE + 1)
        best = min(checkpoints - resumable, spec.checkpoints_kept)
        needed = resumable * (model + state) + best * model + model
    if needed > free:
        raise RunError(
            "disk_full",
            f"The checkpoints that the job keeps and its final model need {_size(needed)}, and {_size(free)} are free. "
            "Free space in the data folder, raise eval_interval so that the job keeps fewer checkpoints, or choose a "
            "smaller model.",
            exit_code=wire.ExitCode.NO_ROOM,
        )
    return DiskRoom(needed, free)


def worst_case_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    hyperparameters: ResolvedHyperparameters,
    prompts: Sequence[Sequence[int]],
    grammar: Grammar | None = None,
    *,
    critic: Critic | None = None,
    reference: Policy | None = None,
) -> WorstCase:
    """Train on answers of ``max_completion_tokens`` to the longest prompt, as many as a micro-batch holds.

    Memory is used as in any step, that of the optimizer, the ``critic`` and the ``reference`` included, and everything
    is as before when it is over. Raises ``RunError`` where it does not suffice.
    """
    h = hyperparameters.model_copy(update={"mini_batches": 1, "old_policy": "trainer"})
    prompt = [*max(prompts, key=len)]
    length = min(h.max_completion_tokens, policy.context_length - len(prompt))
    answer = Rollout([prompt[i % len(prompt)] for i in range(length)], [0.0] * length, "length")
    sample = TrainingSample(prompt, answer, advantage=0.0)
    most = math.ceil(h.batch_size / hyperparameters.mini_batches) * h.group_size
    number = min(most, (update.MICRO_BATCH_TOKENS // max(sample.own_tokens, 1) + 1) * distributed.size())
    (batch,) = update.plan([[sample] * number], policy, h, anything(grammar))
    part = max(batch.parts, key=lambda part: len(part.tokens))
    answers = len(part.rollouts)
    try:
        moments = unmade_moments(optimizer)
        if critic is not None:
            # Its gradients stay until its next update, and are there while the policy's are made.
            moments += unmade_moments(critic.optimizer)
        # The first one takes what compiling for such rows takes, which no step will.
        for _ in range(2 if policy.compiled else 1):
            optimizer.zero_grad(set_to_none=True)
            start = time.perf_counter()
            if critic is not None:
                critic.optimizer.zero_grad(set_to_none=True)
                try_critic(critic, batch, part, h)
            old = objective.old_policy(policy, part, h)
            if reference is not None:
                part = replace(part, reference_log_probs=objective.reference_log_probs(reference, part, h))
            loss = objective.loss(policy, part, old, h, batch.normalizer).loss
            loss.backward()
            loss.item()  # waits for the device
            seconds = time.perf_counter() - start
    except Exception as error:
        if is_out_of_memory(error):
            raise _too_large(len(prompt), length, answers) from error
        raise
    finally:
        optimizer.zero_grad(set_to_none=True)
        if critic is not None:
            critic.optimizer.zero_grad(set_to_none=True)
    del moments
    return WorstCase(answers, answers * sample.tokens, seconds)


def try_critic(critic: Critic, batch: MiniBatch, part: MicroBatch, hyperparameters: ResolvedHyperparameters) -> None:
    """Leave the gradients of an update of the ``critic`` with a ``part`` of the ``batch``."""
    nothing = torch.zeros_like(part.advantages)
    known = replace(part, values=nothing, returns=nothing)
    critic_loss(critic, known, hyperparameters, batch.tokens).loss.backward()


def unmade_moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """As much memory as the optimizer will take at its first step; nothing where it has made it."""
    return [
        torch.zeros_like(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter not in optimizer.state
        for _ in range(MOMENTS)
    ]


def seconds_of_run(
    hyperparameters: ResolvedHyperparameters,
    worst: WorstCase,
    samples: Sequence[Sample],
    evaluation_seconds: float,
) -> float:
    """How long the job will take by what ``samples`` of an evaluation and the largest micro-batch took."""
    h = hyperparameters
    tokens = fmean(len(sample.prompt.token_ids) + len(sample.rollout.token_ids) for sample in samples)
    answers = h.batch_size * h.group_size
    sampling = evaluation_seconds / len(samples) * answers
    training = worst.seconds / worst.tokens * tokens * answers * h.epochs
    length = fmean(len(sample.rollout.token_ids) for sample in samples)
    evaluations = math.ceil(h.n_steps / h.eval_interval) * evaluation_seconds
    if not h.max_staleness:
        return h.n_steps * (sampling + training) + evaluations
    # Nothing is trained while the first step's answers are sampled, and nothing sampled while the last is trained.
    steps = sum(max(shares * sampling, training) for shares in _sampled_ahead(h, length))
    return sampling + steps + training + evaluations


def _sampled_ahead(hyperparameters: ResolvedHyperparameters, length: float) -> Iterator[float]:
    """How much is sampled while each step but the last is trained, in steps' worth of answers of ``length`` tokens."""
    h = hyperparameters
    pieces = h.max_staleness if h.partial_rollouts else 1
    piece = min(1.0, h.max_completion_tokens / pieces / length)
    for step in range(1, h.n_steps):
        shares = 0.0
        for later in range(step + 1, min(step + h.max_staleness, h.n_steps) + 1):
            had = min(1.0, piece * (step - max(1, later - h.max_staleness)))
            shares += 1 - had if later == step + 1 else min(piece, 1 - had)
        yield shares


def nothing_to_learn(grader: Grader, groups: Sequence[Sequence[Sample]], *, across_groups: bool = False) -> str | None:
    """Why nothing will be learned from answers like these; None where something can be.

    ``across_groups`` says that answers to different prompts are told apart as well.
    """
    rewards = [[sample.reward for sample in group if sample.reward is not None] for group in groups]
    every = [reward for group in rewards for reward in group]
    if not every or any(len(set(group)) > 1 for group in ([every] if across_groups else rewards)):
        return None
    ends = grader.bounds()
    answers = f"All {len(every)} answers to the first {len(groups)} training prompts earned"
    if set(every) == {ends.low}:
        return (
            f"{answers} {ends.low:g}, the least that this grader gives. Reinforcement makes the better answers "
            "likelier, and there are none: nothing will be learned. Train the model on example answers first "
            "(supervised fine-tuning), begin with easier prompts, or let the grader give credit for parts of an answer."
        )
    if set(every) == {ends.high}:
        return (
            f"{answers} {ends.high:g}, the most that this grader gives: there is nothing to gain. Use harder prompts "
            "or a stricter grader."
        )
    if len(set(every)) == 1:
        same = f"{answers} {every[0]:g}"
    else:
        same = f"None of the first {len(groups)} training prompts got two answers of different rewards"
    return (
        f"{same}: where answers to a prompt do not differ, nothing is learned. Check that the grader tells good "
        "answers from bad ones, raise group_size or temperature, or train the model on example answers first "
        "(supervised fine-tuning)."
    )


def tell(channel: Channel, worst: WorstCase, room: DiskRoom, seconds: float) -> None:
    """Say what was found and how long the job will take."""
    channel.say(
        f"Checked before training: {worst.answers} answers of the greatest length can be trained on together, "
        f"checkpoints and final model need at most {_size(room.needed)} of {_size(room.free)}, and the job will take "
        f"about {timedelta(seconds=math.ceil(seconds))}",
        data={
            "largest_batch": asdict(worst),
            "disk_needed_bytes": room.needed,
            "disk_free_bytes": room.free,
            "expected_seconds": seconds,
        },
        key="preflight",
    )


def _model_bytes(policy: Policy) -> int:
    return sum((policy.folder / name).stat().st_size for name in weight_files(policy.folder))


def _state_bytes(policy: Policy, critic: Critic | None) -> int:
    copies: int = MOMENTS + (policy.adapter is not None or policy.rounded)
    numbers = copies * _trained(policy) + (0 if critic is None else (MOMENTS + 1) * _trained(critic.model))
    return int(numbers * torch.float32.itemsize)


def _trained(policy: Policy) -> int:
    return sum(parameter.numel() for parameter in policy.model.parameters() if parameter.requires_grad)


def _too_large(prompt: int, answer: int, answers: int) -> RunError:
    return RunError(
        "out_of_memory",
        f"Out of memory before the first step, when training on the longest prompt ({prompt} tokens) with answers of "
        f"{answer} tokens, {answers} at a time, was tried. Lower max_completion_tokens, remove the longest prompts, or "
        "choose a smaller model.",
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
