"""A job from its frozen specification to a trained model: read ``run`` from top to bottom.

Everything random follows from the job's seed and the step, so a run resumed from a checkpoint is the run that was never
interrupted. Graded samples without a reward are no part of the update, and no reward is made up for them.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from service.jobs.spec import ResolvedHyperparameters, RunSpec
from workers import graders, wire
from workers.rollouts.engine import Sampling
from workers.training import batch, checkpoint, data, metrics, policy, seeds, update
from workers.training import evaluate as evaluation
from workers.training import sampler as samplers
from workers.training.answers import AnswerReader
from workers.training.batch import Sample
from workers.training.channel import Channel
from workers.training.checkpoint import TrainerState
from workers.training.clock import Clock
from workers.training.export import export
from workers.training.sampler import Sampler


@dataclass
class Run:
    """What a run works with."""

    spec: RunSpec
    hyperparameters: ResolvedHyperparameters
    channel: Channel
    clock: Clock
    policy: policy.Policy
    optimizer: torch.optim.AdamW
    sampler: Sampler
    grader: graders.Grader
    reader: AnswerReader
    train_prompts: list[data.Prompt]
    valid_prompts: list[data.Prompt]
    trainer: TrainerState
    resumed: Path | None
    """The checkpoint it goes on from."""


def run(spec: RunSpec, channel: Channel, clock: Clock) -> int:
    """Train; the exit code is ``DONE``, or ``STOPPED`` when ``channel`` asked for it. Raises ``RunError``."""
    job = prepare(spec, channel, clock)
    total = job.hyperparameters.n_steps
    if job.trainer.step == 0 and not channel.stopping:
        evaluate_before(job)
    while job.trainer.step < total:
        if channel.stopping:
            save_where_it_stopped(job)
            return wire.ExitCode.STOPPED
        step = job.trainer.step + 1
        samples = roll_out(job, step)
        numbers = learn(job, step, samples)
        due = step % job.hyperparameters.eval_interval == 0 or step == total
        valid = evaluate(job, step) if due else None
        report(job, step, samples, valid, numbers)
        if due:
            save(job)
    finish(job)
    return wire.ExitCode.DONE


def prepare(spec: RunSpec, channel: Channel, clock: Clock) -> Run:
    """Load the newest intact checkpoint, or the base model, and everything else a run needs."""
    hyperparameters = spec.job.hyperparameters
    torch.manual_seed(spec.job.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resumed = find_checkpoint(spec, channel)
    with clock("loading"):
        loaded = policy.load(resumed / checkpoint.MODEL if resumed else spec.model_path, device)
        optimizer = update.make_optimizer(loaded, hyperparameters)
        trainer = checkpoint.restore(resumed, loaded, optimizer) if resumed else TrainerState()
        prompts = {
            param: data.load(path, loaded.tokenizer, loaded.context_length, param)
            for param, path in (("training_file", spec.training_path), ("validation_file", spec.validation_path))
        }
        sampler = samplers.make(loaded, hyperparameters, [*prompts["training_file"], *prompts["validation_file"]])
    spent = {"loading_seconds": clock.seconds["loading"]}
    if resumed:
        message = f"Training resumed from the checkpoint of step {trainer.step}"
        channel.say(message, data=spent, key=f"resumed-{spec.attempt}")
    else:
        channel.say("Training started", data=spent, key="started")
    return Run(
        spec,
        hyperparameters,
        channel,
        clock,
        loaded,
        optimizer,
        sampler,
        graders.build(spec.job.grader, spec.graders),
        AnswerReader(loaded.tokenizer),
        prompts["training_file"],
        prompts["validation_file"],
        trainer,
        resumed,
    )


def find_checkpoint(spec: RunSpec, channel: Channel) -> Path | None:
    """The newest intact checkpoint of earlier attempts; damaged ones are reported and passed over."""
    folder, damaged = checkpoint.find_intact(spec.checkpoints)
    for path, reason in damaged.items():
        channel.say(
            f"Checkpoint {path.name} is damaged and was skipped: {reason}",
            level="warn",
            key=f"damaged-{path.name}-{spec.attempt}",
        )
    return folder


def roll_out(job: Run, step: int) -> list[list[Sample]]:
    """``group_size`` graded answers to each prompt of the step."""
    h, seed = job.hyperparameters, job.spec.job.seed
    rows = data.rows_of_step(step, seed, len(job.train_prompts), h.batch_size)
    prompts = [job.train_prompts[row] for row in rows]
    sampling = Sampling(h.temperature, h.max_completion_tokens, seeds.derive(seed, "rollout", step))
    with job.clock("sampling"):
        rollouts = job.sampler.engine.generate([prompt.token_ids for prompt in prompts], h.group_size, sampling)
    with job.clock("grading"):
        return batch.grade(job.grader, job.reader, prompts, rollouts)


def learn(job: Run, step: int, samples: list[list[Sample]]) -> update.Numbers:
    """Advantages, the old policy's distributions, then one update for each mini-batch."""
    h = job.hyperparameters
    with job.clock("training"):
        groups = batch.trainable(samples, h.advantage)
        batches = update.plan(groups, job.policy, h)
        with job.clock("old_log_probs"):
            old = update.read_old_policy(job.policy, batches, h)
        batches, numbers = update.correct_mismatch(batches, old, h)
        numbers |= update.train(job.policy, job.optimizer, batches, old, h, step)
    with job.clock("sync"):
        job.sampler.push()
    job.trainer.step = step
    job.trainer.trained_tokens += sum(len(sample.rollout.token_ids) for group in groups for sample in group)
    return numbers


def evaluate(job: Run, step: int) -> list[list[Sample]]:
    return evaluation.evaluate(
        job.sampler.engine,
        job.grader,
        job.reader,
        job.valid_prompts,
        job.hyperparameters,
        seed=job.spec.job.seed,
        step=step,
        clock=job.clock,
    )


def evaluate_before(job: Run) -> None:
    """What the base model can do, as the metrics of step 0."""
    job.clock.lap()
    valid = evaluate(job, 0)
    report(job, 0, None, valid, {})
    job.trainer.metrics["valid_reward_mean_before"] = metrics.reward_mean(valid)


def report(
    job: Run,
    step: int,
    train: list[list[Sample]] | None,
    valid: list[list[Sample]] | None,
    numbers: update.Numbers,
) -> None:
    """Tell the step's metrics and where the run is."""
    total, trainer = job.hyperparameters.n_steps, job.trainer
    seconds = job.clock.lap()
    trainer.seconds += seconds["full_iteration"] if step else 0.0
    trainer.metrics |= metrics.lasting(trainer.metrics, step, train, valid, numbers)
    job.channel.send(
        metrics.event(step, total, job.spec.job.grader, train=train, valid=valid, numbers=numbers, seconds=seconds)
    )
    left = trainer.seconds / step * (total - step) if step else None
    job.channel.send(
        wire.Progress(step=step, total_steps=total, trained_tokens=trainer.trained_tokens, seconds_left=left)
    )


def save(job: Run) -> None:
    """Write a checkpoint of the step at hand and tell where it is."""
    trainer = job.trainer
    folder = checkpoint.folder_of(job.spec.output_dir, trainer.step)
    with job.clock("saving"):
        checkpoint.save(folder, job.policy, job.optimizer, trainer)
    seconds = job.clock.lap()["saving"]
    trainer.seconds += seconds
    job.channel.say(
        f"Checkpoint created at step {trainer.step}",
        data={"step": trainer.step, "seconds": seconds},
        key=f"checkpoint-{trainer.step}",
    )
    job.channel.send(wire.Checkpoint(step=trainer.step, path=folder, metrics=trainer.metrics))


def save_where_it_stopped(job: Run) -> None:
    """A checkpoint, unless the step has one or nothing was trained yet."""
    folder = checkpoint.folder_of(job.spec.output_dir, job.trainer.step)
    resumed_here = job.resumed is not None and job.resumed.name == folder.name
    if job.trainer.step > 0 and not folder.exists() and not resumed_here:
        save(job)


def finish(job: Run) -> None:
    """Write the final model and tell the result."""
    folder = job.spec.output_dir / "model"
    with job.clock("saving"):
        export(job.policy, folder)
    trainer = job.trainer
    job.channel.send(
        wire.Result(
            model_path=folder, step=trainer.step, trained_tokens=trainer.trained_tokens, metrics=trainer.metrics
        )
    )
