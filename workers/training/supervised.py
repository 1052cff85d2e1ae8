"""A supervised job from its frozen specification to a trained model: read ``run`` from top to bottom.

The rows of a step follow from the job's seed and the step, so a run resumed from a checkpoint is the run that was never
interrupted. A step's loss is the mean over all of its learned tokens, however they are split into micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from service.jobs.hyperparameters.supervised import ResolvedSupervisedHyperparameters
from service.jobs.methods.supervised import Supervised
from service.jobs.metrics import SupervisedMetrics, SupervisedTiming
from service.jobs.spec import RunSpec
from workers import wire
from workers.data import conversations
from workers.data.conversations import Example
from workers.data.jsonl import Problems
from workers.data.templating import PLAIN, Rendering
from workers.modeling import distributed, rows
from workers.modeling.policy import Policy
from workers.training import preflight
from workers.training.attempt import Attempt, begin, finish, save, save_where_it_stopped, tell_progress, tell_start
from workers.training.data import order, packing
from workers.training.method import Counted, Reading, TrainingMethod
from workers.training.optim import objective, update
from workers.training.processes.channel import Channel
from workers.training.reporting.clock import Clock

OUT_OF_MEMORY = (
    "Out of memory while training. Shorten the longest conversations, set gradient_checkpointing to always, set a "
    "lora_rank, or choose a smaller model."
)


@dataclass(kw_only=True)
class Run(Attempt):
    """What a run works with beside what every attempt has."""

    method: Supervised
    train_rows: Sequence[list[Example]]
    valid_rows: Sequence[list[Example]]
    """Empty where the job has no validation file."""

    @property
    def hyperparameters(self) -> ResolvedSupervisedHyperparameters:
        return self.method.hyperparameters


@dataclass(frozen=True)
class Score:
    """How well learned tokens are predicted."""

    loss: float
    """Mean negative log-likelihood, in nats."""
    accuracy: float
    """Share of the tokens that the model finds the most likely ones."""
    tokens: int


def run(spec: RunSpec, method: Supervised, channel: Channel, clock: Clock) -> int:
    """Train; the exit code is ``DONE``, or ``STOPPED`` when ``channel`` asked for it. Raises ``RunError``."""
    job = prepare(spec, method, channel, clock)
    total = job.hyperparameters.n_steps
    if not distributed.any_rank(channel.stopping) and job.trainer.step == 0 and job.valid_rows:
        evaluate_before(job)
    while job.trainer.step < total:
        if distributed.any_rank(channel.stopping):
            save_where_it_stopped(job)
            return wire.ExitCode.STOPPED
        step = job.trainer.step + 1
        train, numbers = learn(job, step)
        due = step % job.hyperparameters.eval_interval == 0 or step == total
        valid = evaluate(job) if due and job.valid_rows else None
        report(job, step, train, valid, numbers)
        if due:
            save(job)
    finish(job)
    return wire.ExitCode.DONE


def prepare(spec: RunSpec, method: Supervised, channel: Channel, clock: Clock) -> Run:
    """Load the newest intact checkpoint, or the base model, and the rows."""
    attempt = begin(spec, method.hyperparameters, channel, clock)

    with clock("loading"):
        train, valid = (
            load(attempt.policy, path, param, attempt.rendering) if path else []
            for param, path in (("training_file", spec.training_path), ("validation_file", spec.validation_path))
        )
    tell_start(attempt)
    job = Run(**vars(attempt), method=method, train_rows=train, valid_rows=valid)
    if job.trainer.step < method.hyperparameters.n_steps:
        try_largest_step(job)
    return job


def load(policy: Policy, path: Path, param: str, rendering: Rendering = PLAIN) -> Sequence[list[Example]]:
    loaded = conversations.load(path, policy.tokenizer, policy.stop_ids, policy.context_length, param, rendering)
    policy.check_tokens((example.token_ids for row in loaded for example in row), param)
    return loaded


def try_largest_step(job: Run) -> None:
    """Compute the step of the longest rows and change nothing, so that memory that does not suffice is told at once."""
    rows = job.train_rows
    # Of many rows not all may be in memory at once.
    longest = sorted(range(len(rows)), key=lambda number: max(example.tokens for example in rows[number]))
    examples = [example for number in longest[-job.hyperparameters.batch_size :] for example in rows[number]]
    with job.clock("preflight"):
        moments = preflight.unmade_moments(job.optimizer)
        read(job.policy, examples, backward=True)
        job.optimizer.zero_grad(set_to_none=True)
        del moments
    job.clock.lap()


def learn(job: Run, step: int) -> tuple[Score, dict[str, float]]:
    """One update; how the step's rows were predicted before it, and the update's numbers."""
    h = job.hyperparameters
    total = order.rows_in_all(len(job.train_rows), h.batch_size, h.n_steps, h.n_epochs)
    numbers = order.rows_of_step(step, job.spec.job.seed, len(job.train_rows), h.batch_size, total)
    examples = [example for row in numbers for example in job.train_rows[row]]
    rate = learning_rate(h, step)
    with job.clock("training"):
        score = read(job.policy, examples, backward=True)
        norm = update.apply_gradients(job.policy, job.optimizer, rate, h.max_grad_norm)
    job.trainer.step = step
    job.trainer.trained_tokens += score.tokens
    return score, {"lr": rate, "grad_norm": norm}


def evaluate(job: Run) -> Score:
    """How the whole validation file is predicted."""
    examples = [example for row in job.valid_rows for example in row]
    with job.clock("eval"), torch.no_grad():
        return read(job.policy, examples, backward=False)


def read(policy: Policy, examples: Sequence[Example], *, backward: bool) -> Score:
    """Predict the examples' learned tokens; with ``backward``, leave the gradients of their mean loss behind.

    Each rank reads its part of them, in as many micro-batches as every other.
    """
    tokens = sum(len(example.learned) for example in examples)
    own = distributed.own_part(examples, lambda example: example.tokens)
    parts = micro_batches(own, update.token_budget(policy), policy.device, policy.longest_shared)
    parts += [rows.idle(policy.device)] * (distributed.largest(len(parts)) - len(parts))
    loss = right = 0.0
    for part in parts:
        output = objective.cross_entropy(policy, part, normalizer=tokens)
        value = output.loss.item()
        update.check_finite("loss", value)
        if backward:
            output.loss.backward()
        loss += value
        if len(part.tokens):
            right += output.metrics["accuracy"].item() * len(part.tokens)
    losses, rights = zip(*distributed.gather((loss, right)), strict=True)
    return Score(sum(losses), sum(rights) / tokens, tokens)


def micro_batches(
    examples: Sequence[Example], budget: int, device: torch.device, longest_shared: int = 0
) -> list[rows.Rows]:
    """The examples in micro-batches of at most ``budget`` tokens, padding included (at least one example each).

    Up to ``longest_shared`` tokens they may share rows; 0 gives each its own.
    """
    share = max((example.tokens for example in examples), default=0) <= longest_shared
    parts = packing.filled(examples, budget, share=share)
    return [rows.collate([[example.block() for example in row] for row in part], device) for part in parts]


def learning_rate(hyperparameters: ResolvedSupervisedHyperparameters, step: int) -> float:
    """Linear warm-up over the first ``warmup_steps`` steps (from 1), then constant, or falling by equal parts.

    A falling rate would reach 0 in the step after the last.
    """
    h = hyperparameters
    if step <= h.warmup_steps:
        return h.learning_rate * step / h.warmup_steps
    if h.schedule == "constant":
        return h.learning_rate
    return h.learning_rate * (h.n_steps + 1 - step) / (h.n_steps + 1 - h.warmup_steps)


def evaluate_before(job: Run) -> None:
    """How well the base model predicts, as the metrics of step 0."""
    job.clock.lap()
    valid = evaluate(job)
    report(job, 0, None, valid, {})
    job.trainer.metrics["valid_loss_before"] = valid.loss


def report(job: Run, step: int, train: Score | None, valid: Score | None, numbers: dict[str, float]) -> None:
    """Tell the step's metrics and where the run is."""
    total, trainer = job.hyperparameters.n_steps, job.trainer
    seconds = job.clock.lap()
    trainer.seconds += seconds["full_iteration"] if step else 0.0
    trainer.metrics |= checkpoint_metrics(trainer.metrics, step, train, valid, numbers)
    values = SupervisedMetrics(
        step=step,
        total_steps=total,
        **scores(train, valid),
        train_tokens=train.tokens if train else None,
        timing=SupervisedTiming(step={"training": 0.0, "eval": 0.0} | seconds),
        troll=numbers,
    ).model_dump()
    job.channel.send(wire.Event(type="metrics", message=message(values), data=values, key=f"step-{step}"))
    tell_progress(job, step, total)


def scores(train: Score | None, valid: Score | None) -> dict[str, Any]:
    """OpenAI's names; every evaluation is one of the full file, so that ``valid_…`` and ``full_valid_…`` are the same.

    Numbers that a step has not are null.
    """
    named = {"train": train, "valid": valid, "full_valid": valid}
    return {
        name: value
        for part, score in named.items()
        for name, value in (
            (f"{part}_loss", score.loss if score else None),
            (f"{part}_mean_token_accuracy", score.accuracy if score else None),
        )
    }


def checkpoint_metrics(
    known: dict[str, float | None], step: int, train: Score | None, valid: Score | None, numbers: dict[str, float]
) -> dict[str, float | None]:
    """The numbers that go with a checkpoint and the result, brought up to date with a step's."""
    new: dict[str, float | None] = {name: value for name, value in scores(train, valid).items() if value is not None}
    best = known.get("best_valid_loss")
    if valid is not None and (best is None or valid.loss < best):
        new |= {"best_valid_loss": valid.loss, "best_valid_step": float(step)}
    return {"step": float(step)} | new | {name: numbers[name] for name in ("grad_norm",) if name in numbers}


def message(values: dict[str, Any]) -> str:
    names = {"training loss": "train_loss", "full validation loss": "full_valid_loss"}
    known = [f"{text}={values[name]:.4f}" for text, name in names.items() if values[name] is not None]
    return f"Step {values['step']}/{values['total_steps']}: " + ", ".join(known)


def count(part: Sequence[tuple[int, bytes]], reading: Reading, problems: Problems) -> Counted:
    read = conversations.read(
        part, reading.tokenizer, reading.ends, reading.context_length, problems, reading.rendering
    )
    highest = max((max(example.token_ids) for examples in read for example in examples), default=0)
    return Counted(rows=len(read), highest=highest)


METHOD = TrainingMethod(
    run,
    count,
    out_of_memory={
        "preflight": OUT_OF_MEMORY,
        "training": OUT_OF_MEMORY,
        "eval": "Out of memory while evaluating. Shorten the longest conversations of the validation file.",
    },
)
