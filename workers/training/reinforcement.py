"""A job from its frozen specification to a trained model: read ``run`` from top to bottom.

Everything random follows from the job's seed and the step, so a run resumed from a checkpoint is the run that was never
interrupted. Samples that a jail, judge or service left without a reward are no part of the update.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from service.jobs.methods.reinforcement import Reinforcement
from service.jobs.spec import RunSpec
from workers import wire
from workers.answers import AnswerReader
from workers.data.packed import Joined
from workers.data.prompts import Prompts, load_prompts
from workers.errors import RunError
from workers.modeling import distributed
from workers.modeling.policy import Policy
from workers.rollouts.grammar import Grammar
from workers.training import checkpoint, preflight
from workers.training.attempt import (
    Attempt,
    begin,
    compile_layers,
    finish,
    save,
    save_where_it_stopped,
    tell_progress,
    tell_start,
)
from workers.training.data import batch
from workers.training.data.batch import Sample
from workers.training.method import TrainingMethod, count_prompts
from workers.training.optim import critic, reference, update
from workers.training.processes.channel import Channel
from workers.training.reporting import early_stop, evaluation, metrics
from workers.training.reporting.clock import Clock
from workers.training.sampling import filtering, prefetched, sets
from workers.training.sampling.collection import staleness
from workers.training.sampling.grammar import allowed_by, load_grammar
from workers.training.sampling.patience import GraderAwayError
from workers.training.sampling.rewards import Rewards
from workers.training.sampling.rollouts import Rollouts
from workers.training.sampling.sampler import Sampler, check_sampler, make_sampler
from workers.training.sampling.sets import EvaluationSet

ACROSS_GROUPS = {"gae", "reinforce_plus_plus"}
"""Estimators that tell answers to different prompts apart."""
SETS = "method.reinforcement.validation_sets"
UNREPORTED, NUMBERS = "unreported", "numbers.json"
"""In a checkpoint's state: a step that was trained and not evaluated yet."""


@dataclass(frozen=True)
class Evaluated:
    """Graded answers of one evaluation."""

    validation: list[list[Sample]]
    """To the rows of the validation file."""
    sets: dict[str, list[list[Sample]]]
    """To those of the validation sets, by name."""


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
    rollouts: Rollouts
    rewards: Rewards
    grammar: Grammar | None
    """What answers are held to."""
    reference: Policy | None
    """What the policy is held near to."""
    train_prompts: Prompts
    validation: EvaluationSet
    """The validation file."""
    sets: list[EvaluationSet]
    """The validation sets."""
    unreported: Unreported | None = None
    """The step at hand between its last update and its evaluation, in which a grader may be away for long."""

    @property
    def hyperparameters(self) -> ResolvedHyperparameters:
        return self.method.hyperparameters


def run(spec: RunSpec, method: Reinforcement, channel: Channel, clock: Clock) -> int:
    """Train; the exit code is ``DONE``, or ``STOPPED`` when ``channel`` asked for it. Raises ``RunError``."""
    job = prepare(spec, method, channel, clock)
    try:
        return steps(job)
    except GraderAwayError as away:
        # What was trained is worth more than the time until somebody has mended the grader.
        save_where_it_stopped(job, keep_in_flight(job))
        if distributed.any_rank(channel.stopping):
            return wire.ExitCode.STOPPED
        raise RunError("grader_unavailable", str(away), exit_code=wire.ExitCode.GRADER_AWAY) from away
    finally:
        job.rollouts.close()


def steps(job: Run) -> int:
    """Every step from where the run is to the last one. Raises ``GraderAwayError`` where it cannot go on for now."""
    channel, total = job.channel, job.hyperparameters.n_steps
    if job.unreported is not None:
        if distributed.any_rank(channel.stopping):
            return wire.ExitCode.STOPPED
        conclude(job)
    if not distributed.any_rank(channel.stopping) and not is_over(job):
        before_the_first_step(job)
    while not is_over(job):
        if distributed.any_rank(channel.stopping):
            save_where_it_stopped(job, keep_in_flight(job))
            return wire.ExitCode.STOPPED
        step = job.trainer.step + 1
        samples = take(job, step)
        if step == 1:
            warn_if_nothing_can_be_learned(job, samples)
        if job.hyperparameters.max_staleness and step < total:
            job.rollouts.prefetch(step)
        job.unreported = Unreported(samples, learn(job, step, samples))
        conclude(job)
    finish(job)
    return wire.ExitCode.DONE


def is_over(job: Run) -> bool:
    return job.trainer.step >= job.hyperparameters.n_steps or bool(job.trainer.metrics.get(early_stop.STOPPED))


def conclude(job: Run) -> None:
    """Evaluate after the step at hand if that is due, tell what came of it, and save where it was evaluated."""
    assert job.unreported is not None
    step, total, told = job.trainer.step, job.hyperparameters.n_steps, job.unreported
    due = step % job.hyperparameters.eval_interval == 0 or step == total
    evaluated = evaluate(job) if due else None
    report(job, step, told.samples, evaluated, told.numbers)
    job.unreported = None
    if due:
        stop_early(job)
    tell_progress(job, step, total)
    if due:
        save(job, keep_in_flight(job))


def prepare(spec: RunSpec, method: Reinforcement, channel: Channel, clock: Clock) -> Run:
    """Load the newest intact checkpoint, or the base model, and everything else a run needs."""
    assert spec.validation_path is not None, "reinforcement is not accepted without a validation file"
    check_sampler(method.hyperparameters, spec.rollout_tensor_parallel)
    h = method.hyperparameters
    attempt = begin(spec, h, channel, clock, with_critic=h.advantage == "gae")
    loaded = attempt.policy
    with clock("loading"):
        base = reference.load(spec.model_path, loaded) if h.kl_coefficient else None
        if base is not None and loaded.compiled and not base.compiled:
            compile_layers(base, channel, "reference")
        train, valid = (
            load_prompts(path, loaded.tokenizer, loaded.context_length, param, attempt.rendering)
            for param, path in (("training_file", spec.training_path), ("validation_file", spec.validation_path))
        )
        held_out = [
            load_prompts(path, loaded.tokenizer, loaded.context_length, f"{SETS}[{number}].file", attempt.rendering)
            for number, path in enumerate(spec.validation_set_paths)
        ]
        named = {"training_file": train, "validation_file": valid}
        named |= {f"{SETS}[{number}].file": prompts for number, prompts in enumerate(held_out)}
        for param, prompts in named.items():
            loaded.check_tokens(prompts.token_ids, param)
        grammar = load_grammar(method.json_schema, loaded)
        sampler = make_sampler(
            loaded,
            method.hyperparameters,
            Joined([prompts.token_ids for prompts in named.values()]),
            max([method.longest_answer, *(each.max_completion_tokens for each in method.validation_sets)]),
            spec.rollout_tensor_parallel,
            grammar,
            spec.rollout_memory_share,
        )
    tell_start(attempt)
    reader = AnswerReader(loaded.tokenizer)
    grading = sets.grading_by(method.grader, spec.graders, reader, channel)
    job = Run(
        **vars(attempt),
        method=method,
        sampler=sampler,
        rollouts=Rollouts(spec, method.hyperparameters, sampler.engine, grading, train, grammar, clock, loaded),
        rewards=Rewards(method.grader, channel, attempt.trainer.least_given),
        grammar=grammar,
        reference=base,
        train_prompts=train,
        validation=sets.of_validation_file(spec.job.seed, method, valid, grading, grammar),
        sets=[
            sets.of_validation_set(
                spec.job.seed,
                declared,
                declared.grader or method.grader,
                prompts,
                sets.grading_by(declared.grader, spec.graders, reader, channel) if declared.grader else grading,
                grammar,
            )
            for declared, prompts in zip(method.validation_sets, held_out, strict=True)
        ],
    )
    if job.resumed:
        restore(job, job.resumed / checkpoint.STATE)
    return job


def restore(job: Run, state: Path) -> None:
    """Answers that a checkpoint brought along: of steps to come, and of a step that was not evaluated yet."""
    job.rollouts.restore(state, job.trainer.step)
    if prefetched.are_in(state / UNREPORTED):
        samples = job.rollouts.read(state / UNREPORTED, job.trainer.step)
        job.unreported = Unreported(samples, json.loads((state / UNREPORTED / NUMBERS).read_bytes()))


def take(job: Run, step: int) -> list[list[Sample]]:
    """The step's answers with what they earn, and where groups are filtered those of further prompts behind them."""
    samples = settle(job, job.rollouts.take(step))
    if job.hyperparameters.filter_groups:
        samples = filtering.refilled(
            samples, job.hyperparameters, lambda number: settle(job, job.rollouts.refill(step, number))
        )
    job.rollouts.release(step)
    return samples


def settle(job: Run, samples: list[list[Sample]]) -> list[list[Sample]]:
    """What every answer earns, those at fault included."""
    settled = job.rewards.settle(samples)
    job.trainer.least_given = job.rewards.given
    return settled


def keep_in_flight(job: Run) -> Callable[[Path], None]:
    """What writes into a checkpoint's state the answers that were sampled ahead, and those not yet reported."""
    ahead, unreported, version = job.rollouts.prefetched(), job.unreported, job.sampler.engine.version
    step = job.trainer.step

    def write(state: Path) -> None:
        prefetched.write_ahead(state, step, ahead, version)
        if unreported is not None:
            (state / UNREPORTED).mkdir()
            prefetched.write(state / UNREPORTED, unreported.samples, version)
            (state / UNREPORTED / NUMBERS).write_text(json.dumps(unreported.numbers) + "\n")

    return write


def learn(job: Run, step: int, samples: list[list[Sample]]) -> update.Numbers:
    """Advantages, the old policy's distributions, then one update for each mini-batch, of a critic and the policy."""
    h = job.hyperparameters
    numbers = staleness(samples, job.sampler.engine.version, h.max_staleness)
    if h.filter_groups:
        of_step = job.rollouts.size_of(step)
        numbers |= filtering.numbers(samples, of_step, h)
        samples = filtering.kept(samples, of_step, h)
    with job.clock("sync"):
        job.sampler.make_room()
    with job.clock("training"):
        groups = batch.trainable(samples, h)
        batches = update.plan(groups, job.policy, h, allowed_by(job.grammar))
        with job.clock("old_log_probs"):
            old = update.read_old_policy(job.policy, batches, h)
        if job.reference is not None:
            with job.clock("reference_log_probs"):
                batches = reference.read(job.reference, batches, h)
            if h.kl_in == "reward":
                batches, divergence = reference.take_from_rewards(batches, old, groups, h)
                numbers |= divergence
        if job.critic is not None:
            with job.clock("values"):
                batches, estimated = critic.estimate(job.critic, batches, h)
            numbers |= estimated
        batches, mismatch = update.correct_mismatch(batches, old, h)
        numbers |= mismatch
        if job.critic is not None:
            numbers |= critic.update_critic(job.critic, batches, h, step)
        if job.critic is None or step > h.critic_warmup_steps:
            numbers |= update.update_policy(job.policy, job.optimizer, batches, old, h, step)
    job.rollouts.wait_until_sampled()
    with job.clock("sync"):
        job.sampler.push()
    job.trainer.step = step
    job.trainer.trained_tokens += sum(len(sample.rollout.token_ids) for group in groups for sample in group)
    return numbers


def evaluate(job: Run) -> Evaluated:
    """Graded answers to every row of the validation file and of the validation sets."""
    validation = settle(job, sets.without_tokens(job.rollouts.evaluate(job.validation)))
    first = job.trainer.step == 0
    by_set = {}
    for each in job.sets:
        answers = sets.without_tokens(job.rollouts.evaluate(each))
        by_set[each.name] = each.settle(answers, job.channel, first=first)
    return Evaluated(validation, by_set)


def stop_early(job: Run) -> None:
    """Take note of an evaluation, and end training where it says so; the result is the model as it is."""
    h, known = job.hyperparameters, job.trainer.metrics
    known |= early_stop.checkpoint_metrics(known, h)
    why = early_stop.reason(known, h)
    if why is not None and job.trainer.step < h.n_steps:
        known[early_stop.STOPPED] = 1.0
        job.channel.say(
            f"Stopped early at step {job.trainer.step} of {h.n_steps}: {why}",
            data={"step": job.trainer.step},
            key="stopped-early",
        )


def before_the_first_step(job: Run) -> None:
    """Try the largest micro-batch; where nothing was trained yet, first see what the base model can do."""
    h = job.hyperparameters
    base = evaluate_base(job) if job.trainer.step == 0 else None
    with job.clock("preflight"), job.sampler.room():
        prompts = job.train_prompts.token_ids
        worst = preflight.worst_case_step(
            job.policy, job.optimizer, h, prompts, job.grammar, critic=job.critic, reference=job.reference
        )
    if base is not None:
        expected = preflight.seconds_of_run(h, worst, *base)
        room = preflight.check_disk_room(job.spec, job.policy, h.n_steps, h.eval_interval, job.critic)
        preflight.tell(job.channel, worst, room, expected)
        tell_progress(job, 0, h.n_steps, expected)
    job.clock.lap()


def evaluate_base(job: Run) -> tuple[list[Sample], float]:
    """What the base model can do, as the metrics of step 0, and how many seconds it took to see."""
    job.clock.lap()
    evaluated = evaluate(job)
    seconds = job.clock.seconds["eval"]
    report(job, 0, None, evaluated, {})
    job.trainer.metrics["valid_reward_mean_before"] = metrics.reward_mean(evaluated.validation)
    job.trainer.metrics |= early_stop.checkpoint_metrics(job.trainer.metrics, job.hyperparameters)
    every = [evaluated.validation, *evaluated.sets.values()]
    return [sample for groups in every for group in groups for sample in group], seconds


def warn_if_nothing_can_be_learned(job: Run, samples: list[list[Sample]]) -> None:
    across = job.hyperparameters.advantage in ACROSS_GROUPS
    reason = preflight.nothing_to_learn(job.method.grader, samples, across_groups=across)
    if reason:
        job.channel.say(reason, level="warn", key="nothing-to-learn")


def report(
    job: Run,
    step: int,
    train: list[list[Sample]] | None,
    evaluated: Evaluated | None,
    numbers: update.Numbers,
) -> None:
    """Tell the step's metrics."""
    valid = evaluated.validation if evaluated else None
    by_set = {
        each.name: evaluation.statistics(each.grader, evaluated.sets[each.name] if evaluated else None)
        for each in job.sets
    }
    total, trainer = job.hyperparameters.n_steps, job.trainer
    seconds = job.clock.lap()
    trainer.seconds += seconds["full_iteration"] if step else 0.0
    trainer.metrics |= metrics.checkpoint_metrics(trainer.metrics, step, train, valid, numbers)
    trainer.metrics |= evaluation.checkpoint_metrics(by_set)
    job.channel.send(
        metrics.event(
            step, total, job.method.grader, train=train, valid=valid, sets=by_set, numbers=numbers, seconds=seconds
        )
    )


METHOD = TrainingMethod(run, count_prompts, samples=True)
