"""A job from its frozen specification to a trained model: read ``run`` from top to bottom.

Everything random follows from the job's seed and the step, so a run resumed from a checkpoint is the run that was never
interrupted. Samples that a jail, judge or service left without a reward are no part of the update.
"""

import json
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.jobs.spec import Reinforcement, ResolvedHyperparameters, RunSpec
from workers import graders, wire
from workers.answers import AnswerReader
from workers.data.prompts import Prompt, load_prompts
from workers.errors import RunError
from workers.modeling import distributed, seeds
from workers.rollouts.engine import Sampling
from workers.rollouts.grammar import Grammar
from workers.training import checkpoint, preflight
from workers.training.attempt import Attempt, begin, finish, save, save_where_it_stopped, tell_progress, tell_start
from workers.training.data import batch, order
from workers.training.data.batch import Sample
from workers.training.optim import update
from workers.training.processes.channel import Channel
from workers.training.reporting import metrics
from workers.training.reporting.clock import Clock
from workers.training.sampling import evaluate as evaluation
from workers.training.sampling import grammar as grammars
from workers.training.sampling import prefetched as ahead
from workers.training.sampling import sampler as samplers
from workers.training.sampling.collection import Collection, Grading, staleness
from workers.training.sampling.patience import GraderAwayError, Patient
from workers.training.sampling.rewards import Rewards
from workers.training.sampling.sampler import Sampler

UNREPORTED, NUMBERS = "unreported", "numbers.json"
"""In a checkpoint's state: a step that was trained and not evaluated yet."""


@dataclass(frozen=True)
class Unreported:
    """What a step has learned from, and the numbers of its updates."""

    samples: list[list[Sample]]
    numbers: update.Numbers


@dataclass(kw_only=True)
class Run(Attempt):
    """What a run works with beside what every attempt has."""

    method: Reinforcement
    sampler: Sampler
    grading: Grading
    rewards: Rewards
    sampling: Executor
    """The thread that samples ahead."""
    grammar: Grammar | None
    """What answers are held to."""
    train_prompts: list[Prompt]
    valid_prompts: list[Prompt]
    ahead: Collection | None = None
    """The answers for the next step, on their way while this one is trained."""
    restored: list[list[Sample]] | None = None
    """The answers for the next step that the checkpoint brought along."""
    unreported: Unreported | None = None
    """The step at hand between its last update and its evaluation, in which a grader may be away for long."""

    @property
    def hyperparameters(self) -> ResolvedHyperparameters:
        return self.method.hyperparameters


def run(spec: RunSpec, method: Reinforcement, channel: Channel, clock: Clock) -> int:
    """Train; the exit code is ``DONE``, or ``STOPPED`` when ``channel`` asked for it. Raises ``RunError``."""
    job = prepare(spec, method, channel, clock)
    try:
        return train(job)
    finally:
        job.sampling.shutdown(wait=False, cancel_futures=True)
        job.grading.close()


def train(job: Run) -> int:
    """Every step from where the run is to the last one. Raises ``RunError``."""
    try:
        return steps(job)
    except GraderAwayError as away:
        # What was trained is worth more than the time until somebody has mended the grader.
        save_where_it_stopped(job, keep_ahead(job))
        if distributed.any_rank(job.channel.stopping):
            return wire.ExitCode.STOPPED
        raise RunError("grader_unavailable", str(away), exit_code=wire.ExitCode.GRADER_AWAY) from away


def steps(job: Run) -> int:
    """Raises ``GraderAwayError`` where the run cannot go on for now."""
    channel, total = job.channel, job.hyperparameters.n_steps
    if job.unreported is not None:
        if distributed.any_rank(channel.stopping):
            return wire.ExitCode.STOPPED
        conclude(job)
    if not distributed.any_rank(channel.stopping) and job.trainer.step < total:
        before_the_first_step(job)
    while job.trainer.step < total:
        if distributed.any_rank(channel.stopping):
            save_where_it_stopped(job, keep_ahead(job))
            return wire.ExitCode.STOPPED
        step = job.trainer.step + 1
        samples = roll_out(job, step)
        if step == 1:
            warn_if_nothing_can_be_learned(job, samples)
        if job.hyperparameters.max_staleness and step < total:
            job.ahead = collect(job, step + 1, job.sampling)
        job.unreported = Unreported(samples, learn(job, step, samples))
        conclude(job)
    finish(job)
    return wire.ExitCode.DONE


def conclude(job: Run) -> None:
    """Evaluate after the step at hand if that is due, tell what came of it, and save where it was evaluated."""
    assert job.unreported is not None
    step, total, told = job.trainer.step, job.hyperparameters.n_steps, job.unreported
    due = step % job.hyperparameters.eval_interval == 0 or step == total
    valid = evaluate(job, step) if due else None
    report(job, step, told.samples, valid, told.numbers)
    job.unreported = None
    tell_progress(job, step, total)
    if due:
        save(job, keep_ahead(job))


def prepare(spec: RunSpec, method: Reinforcement, channel: Channel, clock: Clock) -> Run:
    """Load the newest intact checkpoint, or the base model, and everything else a run needs."""
    assert spec.validation_path is not None, "reinforcement is not accepted without a validation file"
    samplers.check(method.hyperparameters, spec.rollout_tensor_parallel)
    attempt = begin(spec, method.hyperparameters, channel, clock)
    loaded = attempt.policy
    with clock("loading"):
        train, valid = (
            load_prompts(path, loaded.tokenizer, loaded.context_length, param, attempt.rendering)
            for param, path in (("training_file", spec.training_path), ("validation_file", spec.validation_path))
        )
        for param, prompts in (("training_file", train), ("validation_file", valid)):
            loaded.check_tokens((prompt.token_ids for prompt in prompts), param)
        grammar = grammars.load(method.json_schema, loaded)
        sampler = samplers.make(loaded, method.hyperparameters, [*train, *valid], spec.rollout_tensor_parallel, grammar)
    tell_start(attempt)
    job = Run(
        **vars(attempt),
        method=method,
        sampler=sampler,
        grading=Grading(
            Patient(graders.build(method.grader, spec.graders), channel),
            AnswerReader(loaded.tokenizer),
            graders.batch_size(method.grader),
        ),
        rewards=Rewards(method.grader, channel, attempt.trainer.least_given),
        sampling=ThreadPoolExecutor(1, thread_name_prefix="sampling"),
        grammar=grammar,
        train_prompts=train,
        valid_prompts=valid,
    )
    if job.resumed:
        restore(job, job.resumed / checkpoint.STATE)
    return job


def restore(job: Run, state: Path) -> None:
    """Answers that a checkpoint brought along: of the next step, or of a step that was not evaluated yet."""
    reader, version = job.grading.reader, job.sampler.engine.version
    if ahead.are_in(state):
        job.restored = ahead.read(state, prompts_of(job, job.trainer.step + 1), reader, version)
    if ahead.are_in(state / UNREPORTED):
        samples = ahead.read(state / UNREPORTED, prompts_of(job, job.trainer.step), reader, version)
        job.unreported = Unreported(samples, json.loads((state / UNREPORTED / NUMBERS).read_bytes()))


def roll_out(job: Run, step: int) -> list[list[Sample]]:
    """``group_size`` graded answers to each prompt of the step: sampled now, or while the step before was trained."""
    if job.restored is not None:
        samples, job.restored = job.restored, None
        return settle(job, samples)
    collection, job.ahead = job.ahead or collect(job, step), None
    with job.clock("sampling"):
        collection.wait_until_sampled()
    with job.clock("grading"):
        samples = collection.result()
    job.clock.seconds["sampling_hidden"] += collection.hidden("sampling")
    job.clock.seconds["grading_hidden"] += collection.hidden("grading")
    return settle(job, samples)


def settle(job: Run, samples: list[list[Sample]]) -> list[list[Sample]]:
    """What every answer earns, those at fault included."""
    settled = job.rewards.settle(samples)
    job.trainer.least_given = job.rewards.given
    return settled


def collect(job: Run, step: int, thread: Executor | None = None) -> Collection:
    """Sample the answers of a step, in ``thread`` where there is one, and grade them as they come."""
    h = job.hyperparameters
    seed = seeds.derive(job.spec.job.seed, "rollout", step)
    sampling = Sampling(h.temperature, h.max_completion_tokens, seed, grammar=job.grammar)
    collection = Collection(prompts_of(job, step), job.grading, job.sampler.engine.together)
    if thread is not None:
        collection.sample_in(thread, job.sampler.engine, h.group_size, sampling, job.policy.device)
    else:
        with job.clock("sampling"):
            collection.sample(job.sampler.engine, h.group_size, sampling)
    return collection


def prompts_of(job: Run, step: int) -> list[Prompt]:
    h, number = job.hyperparameters, len(job.train_prompts)
    total = order.rows_in_all(number, h.batch_size, h.n_steps, h.n_epochs)
    rows = order.rows_of_step(step, job.spec.job.seed, number, h.batch_size, total)
    return [job.train_prompts[row] for row in rows]


def keep_ahead(job: Run) -> Callable[[Path], None] | None:
    """What writes into a checkpoint's state the answers that were sampled ahead, and those not yet reported."""
    groups, unreported, version = None, job.unreported, job.sampler.engine.version
    if job.ahead is not None:
        # The checkpoint is worth keeping without them; what went wrong ends the run when the answers are needed.
        with suppress(Exception), job.clock("grading"):
            groups = job.ahead.result()

    def write(state: Path) -> None:
        if groups is not None:
            ahead.write(state, groups, version)
        if unreported is not None:
            (state / UNREPORTED).mkdir()
            ahead.write(state / UNREPORTED, unreported.samples, version)
            (state / UNREPORTED / NUMBERS).write_text(json.dumps(unreported.numbers) + "\n")

    return write


def learn(job: Run, step: int, samples: list[list[Sample]]) -> update.Numbers:
    """Advantages, the old policy's distributions, then one update for each mini-batch."""
    h = job.hyperparameters
    numbers = staleness(samples, job.sampler.engine.version, h.max_staleness)
    with job.clock("training"):
        groups = batch.trainable(samples, h.advantage)
        batches = update.plan(groups, job.policy, h, grammars.allowed_by(job.grammar))
        with job.clock("old_log_probs"):
            old = update.read_old_policy(job.policy, batches, h)
        batches, mismatch = update.correct_mismatch(batches, old, h)
        numbers |= mismatch | update.train(job.policy, job.optimizer, batches, old, h, step)
    if job.ahead is not None:
        with job.clock("sampling"):
            job.ahead.wait_until_sampled()
    with job.clock("sync"):
        job.sampler.push()
    job.trainer.step = step
    job.trainer.trained_tokens += sum(len(sample.rollout.token_ids) for group in groups for sample in group)
    return numbers


def evaluate(job: Run, step: int) -> list[list[Sample]]:
    samples = evaluation.evaluate(
        job.sampler.engine,
        job.grading,
        job.valid_prompts,
        job.hyperparameters,
        seed=job.spec.job.seed,
        step=step,
        clock=job.clock,
        grammar=job.grammar,
    )
    return settle(job, samples)


def before_the_first_step(job: Run) -> None:
    """Try the largest micro-batch; where nothing was trained yet, first see what the base model can do."""
    h = job.hyperparameters
    base = evaluate_base(job) if job.trainer.step == 0 else None
    with job.clock("preflight"):
        worst = preflight.worst_case_step(job.policy, job.optimizer, h, job.train_prompts, job.grammar)
    if base is not None:
        expected = preflight.seconds_of_run(h, worst, *base)
        room = preflight.check_disk_room(job.spec, job.policy, h.n_steps, h.eval_interval)
        preflight.tell(job.channel, worst, room, expected)
        tell_progress(job, 0, h.n_steps, expected)
    job.clock.lap()


def evaluate_base(job: Run) -> tuple[list[list[Sample]], float]:
    """What the base model can do, as the metrics of step 0, and how many seconds it took to see."""
    job.clock.lap()
    valid = evaluate(job, 0)
    seconds = job.clock.seconds["eval"]
    report(job, 0, None, valid, {})
    job.trainer.metrics["valid_reward_mean_before"] = metrics.reward_mean(valid)
    return valid, seconds


def warn_if_nothing_can_be_learned(job: Run, samples: list[list[Sample]]) -> None:
    reason = preflight.nothing_to_learn(job.method.grader, samples)
    if reason:
        job.channel.say(reason, level="warn", key="nothing-to-learn")


def report(
    job: Run,
    step: int,
    train: list[list[Sample]] | None,
    valid: list[list[Sample]] | None,
    numbers: update.Numbers,
) -> None:
    """Tell the step's metrics."""
    total, trainer = job.hyperparameters.n_steps, job.trainer
    seconds = job.clock.lap()
    trainer.seconds += seconds["full_iteration"] if step else 0.0
    trainer.metrics |= metrics.lasting(trainer.metrics, step, train, valid, numbers)
    job.channel.send(
        metrics.event(step, total, job.method.grader, train=train, valid=valid, numbers=numbers, seconds=seconds)
    )
