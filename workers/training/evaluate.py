"""An evaluation from its frozen specification to its figures: read ``run`` from top to bottom.

Nothing is learned. Answers to some rows of a set are a step, which is kept on disk: an attempt takes what earlier ones
have answered and goes on behind it. Random numbers follow from the job's seed, the set and the row, so that the figures
are those of an evaluation that was never interrupted, and of one in a job that trains.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from service.jobs.methods.evaluation import Evaluation
from service.jobs.metrics import EvaluationMetrics, SupervisedTiming
from service.jobs.spec import RunSpec
from workers import wire
from workers.answers import AnswerReader
from workers.data.packed import Joined
from workers.data.prompts import Prompt, load_prompts
from workers.data.templating import rendering_of
from workers.errors import RunError
from workers.modeling import distributed, policy, sharding
from workers.modeling.export import whole
from workers.rollouts.engine import RolloutEngine
from workers.training.data.batch import Sample
from workers.training.method import TrainingMethod, count_prompts
from workers.training.processes.channel import Channel
from workers.training.reporting import evaluation, metrics
from workers.training.reporting.clock import Clock
from workers.training.sampling import prefetched, rollouts, sets
from workers.training.sampling.grammar import load_grammar
from workers.training.sampling.patience import GraderAwayError
from workers.training.sampling.sampler import check_sampler, make_sampler
from workers.training.sampling.sets import EvaluationSet

SETS = "method.evaluation.validation_sets"
ANSWERED = "answered"
"""Where an attempt keeps its steps' answers, beneath its folder."""


@dataclass(frozen=True)
class Step:
    """Some rows of a set, that is prompts from ``first`` on."""

    number: int
    evaluated: EvaluationSet
    first: int
    prompts: Sequence[Prompt]

    @property
    def ends_set(self) -> bool:
        return self.first + len(self.prompts) == len(self.evaluated.prompts)


@dataclass(frozen=True)
class Run:
    """What an attempt works with."""

    spec: RunSpec
    method: Evaluation
    channel: Channel
    clock: Clock
    engine: RolloutEngine
    reader: AnswerReader
    sets: list[EvaluationSet]


def run(spec: RunSpec, method: Evaluation, channel: Channel, clock: Clock) -> int:
    """Evaluate; the exit code is ``DONE``, or ``STOPPED`` when ``channel`` asked for it. Raises ``RunError``."""
    job = prepare(spec, method, channel, clock)
    try:
        return take_steps(job)
    except GraderAwayError as away:
        if distributed.any_rank(channel.stopping):
            return wire.ExitCode.STOPPED
        raise RunError("grader_unavailable", str(away), exit_code=wire.ExitCode.GRADER_AWAY) from away
    finally:
        for each in job.sets:
            each.grading.close()


def prepare(spec: RunSpec, method: Evaluation, channel: Channel, clock: Clock) -> Run:
    """Load the model and the rows."""
    torch.manual_seed(spec.job.seed)
    h = as_training(method)
    check_sampler(h, spec.rollout_tensor_parallel)
    device = distributed.join()
    with clock("loading"):
        loaded = policy.load(spec.model_path, device)
        rendering = rendering_of(method.hyperparameters, loaded.tokenizer, spec.now)
        if distributed.size() > 1:
            sharding.shard(loaded)
        rows = []
        for number, path in enumerate(spec.validation_set_paths):
            param = f"{SETS}[{number}].file"
            rows.append(load_prompts(path, loaded.tokenizer, loaded.context_length, param, rendering))
            loaded.check_tokens(rows[-1].token_ids, param)
        grammar = load_grammar(method.json_schema, loaded)
        sampler = make_sampler(
            loaded,
            h,
            Joined([prompts.token_ids for prompts in rows]),
            method.longest_answer,
            spec.rollout_tensor_parallel,
            grammar,
            spec.rollout_memory_share,
        )
    reader = AnswerReader(loaded.tokenizer)
    evaluated = []
    for declared, prompts in zip(method.validation_sets, rows, strict=True):
        grader = declared.grader or method.grader
        assert grader is not None, "it is not accepted without"
        grading = sets.grading_by(grader, spec.graders, reader, channel)
        evaluated.append(sets.of_validation_set(spec.job.seed, declared, grader, prompts, grading, grammar))
    channel.say("Evaluation started", data={"loading_seconds": clock.seconds["loading"]}, key="started")
    clock.lap()
    return Run(spec, method, channel, clock, sampler.engine, reader, evaluated)


def as_training(method: Evaluation) -> ResolvedHyperparameters:
    """What an engine is told of a job that trains, of one that does not."""
    h = method.hyperparameters
    asked = Hyperparameters(rollout_engine=h.rollout_engine, max_completion_tokens=h.max_completion_tokens)
    return resolve(asked, training_rows=1)


def take_steps(job: Run) -> int:
    """Every step that no attempt has taken; the figures of each set when all of its rows are answered."""
    total, taken, began = job.method.total_steps, 0, time.monotonic()
    answers: list[list[Sample]] = []
    for step in steps(job):
        if distributed.any_rank(job.channel.stopping):
            return wire.ExitCode.STOPPED
        known = answers_of_earlier(job, step)
        if known is None:
            groups = rollouts.evaluate(step.evaluated, step.prompts, job.engine, job.clock, step.first)
            if step.first == 0:
                step.evaluated.settle(groups, job.channel, first=True)
            keep(job, step, groups)
            taken += 1
        answers += sets.without_tokens(groups if known is None else known)
        if step.ends_set:
            report(job, step, step.evaluated.settle(answers, job.channel, first=False))
            answers = []
        if known is None:
            left = (time.monotonic() - began) / taken * (total - step.number)
            job.channel.send(wire.Progress(step=step.number, total_steps=total, trained_tokens=0, seconds_left=left))
    job.channel.send(wire.Evaluated(step=total))
    return wire.ExitCode.DONE


def steps(job: Run) -> Iterator[Step]:
    size, number = job.method.hyperparameters.batch_size, 0
    for each in job.sets:
        for first in range(0, len(each.prompts), size):
            number += 1
            yield Step(number, each, first, each.prompts[first : first + size])


def answers_of_earlier(job: Run, step: Step) -> list[list[Sample]] | None:
    """What an attempt before this one, or this one, has sampled and kept."""
    found = sorted(job.spec.output_dir.parent.glob(f"*/{ANSWERED}/{_name(step)}"))
    # One rank may see what another does not see yet.
    folder: Path | None = distributed.from_first(found[0] if found else None)
    return None if folder is None else prefetched.read(folder, step.prompts, job.reader, job.engine.version)


def keep(job: Run, step: Step, groups: Sequence[Sequence[Sample]]) -> None:
    with job.clock("saving"), whole(job.spec.output_dir / ANSWERED / _name(step)) as partial:
        if distributed.rank() == 0:
            prefetched.write(partial, groups, job.engine.version)


def _name(step: Step) -> str:
    return f"step-{step.number:06d}"


def report(job: Run, step: Step, groups: Sequence[Sequence[Sample]]) -> None:
    """Tell the figures of a set."""
    name, grader, seconds = step.evaluated.name, step.evaluated.grader, job.clock.lap()
    samples = [sample for group in groups for sample in group]
    found = evaluation.statistics(grader, groups)
    data = EvaluationMetrics(
        step=step.number,
        total_steps=job.method.total_steps,
        validation_sets={name: found},
        reward_count={name: sum(sample.reward is not None for sample in samples)},
        parse_error_mean={name: fmean(sample.grade.error == "sample_parse_error" for sample in samples)},
        completion_tokens_mean={name: fmean(len(sample.rollout.token_ids) for sample in samples)},
        clipped_ratio={name: fmean(sample.rollout.finish_reason == "length" for sample in samples)},
        model_graders_token_usage=metrics.tokens_by_model(grader, {"eval": samples}),
        timing=SupervisedTiming(step={"eval": 0.0} | seconds),
        samples=[metrics.shown(group[0]) for group in groups[: metrics.SAMPLES_SHOWN]],
    ).model_dump()
    if found is None:
        message = f"{name}: no answer has a reward"
    else:
        between = f"{found.reward_mean_low:.4f} to {found.reward_mean_high:.4f}"
        message = f"{name}: mean@{found.answers_per_row}={found.mean_at_k:.4f} ({between}), {found.rows} rows"
    job.channel.send(wire.Event(type="metrics", message=message, data=data, key=f"step-{step.number}"))


METHOD = TrainingMethod(run, count_prompts, samples=True)
