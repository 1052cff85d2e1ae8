"""The metrics event of a step: OpenAI's names for reinforcement fine-tuning, and TROLL's numbers under ``troll``."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from service.graders.errors import GRADE_ERRORS
from service.graders.schemas import Grader
from service.jobs.metrics import (
    Completions,
    Errors,
    GraderScores,
    Latency,
    ReinforcementMetrics,
    Scores,
    ShownSample,
    Timing,
    Usage,
    ValidationStatistics,
)
from workers import wire
from workers.graders import TokenUsage
from workers.training.data.batch import Sample
from workers.training.reporting import evaluation

Groups = Sequence[Sequence[Sample]]

TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens")
CHECKPOINT_METRICS = ("kl_before", "kl_after", "fraction_projected", "entropy", "grad_norm")
SAMPLES_SHOWN = 3
MAX_PROMPT, MAX_ANSWER = 200, 500


def event(
    step: int,
    total_steps: int,
    grader: Grader,
    *,
    train: Groups | None,
    valid: Groups | None,
    sets: Mapping[str, ValidationStatistics | None],
    numbers: dict[str, float],
    seconds: dict[str, float],
) -> wire.Event:
    """The event of one step; step 0 is the evaluation before training."""
    parts = {"train": _flat(train), "valid": _flat(valid)}
    data = ReinforcementMetrics(
        step=step,
        total_steps=total_steps,
        **_headline(parts["train"], parts["valid"]),
        model_graders_token_usage=tokens_by_model(grader, {"train": parts["train"], "eval": parts["valid"]}),
        **_groups(train),
        scores=_scores(grader, parts),
        usage=Usage(graders=_usage_of_judges(grader, parts), samples=_reasoning(parts)),
        errors=Errors(graders=_errors(grader, parts)),
        timing=_timing(grader, parts, seconds),
        completions=_completions(parts["train"]),
        troll={name: _finite(value) for name, value in numbers.items()},
        validation=evaluation.statistics(grader, valid),
        validation_sets=dict(sets),
        samples=[shown(group[0]) for group in (valid or [])[:SAMPLES_SHOWN]],
    ).model_dump()
    return wire.Event(type="metrics", message=_message(data, parts), data=data, key=f"step-{step}")


def reward_mean(groups: Groups | None) -> float | None:
    """Mean reward of the samples that have one."""
    return _mean([reward for group in groups or [] for reward in _rewards(group)])


def checkpoint_metrics(
    known: dict[str, float | None], step: int, train: Groups | None, valid: Groups | None, numbers: dict[str, float]
) -> dict[str, float | None]:
    """The numbers that go with a checkpoint and the result, brought up to date with a step's."""
    new: dict[str, float | None] = {"step": float(step)}
    if train is not None:
        new["train_reward_mean"] = reward_mean(train)
    if valid is not None:
        mean, best = reward_mean(valid), known.get("best_valid_reward_mean")
        new["valid_reward_mean"] = mean
        if mean is not None and (best is None or mean > best):
            new |= {"best_valid_reward_mean": mean, "best_valid_step": float(step)}
    return new | {name: _finite(numbers[name]) for name in CHECKPOINT_METRICS if name in numbers}


def _message(data: dict[str, Any], parts: dict[str, list[Sample]]) -> str:
    names = {
        "train mean reward": ("train_mean_reward", "train"),
        "full validation mean reward": ("full_valid_mean_reward", "valid"),
        "full validation mean parse error": ("full_valid_mean_parse_error", None),
    }
    known = [
        f"{text}={data[name]:.4f}{_of_how_many(parts[part]) if part else ''}"
        for text, (name, part) in names.items()
        if data[name] is not None
    ]
    return ", ".join([f"Step {data['step']}/{data['total_steps']}", *known])


def _of_how_many(samples: list[Sample]) -> str:
    """What a mean reward leaves out, where it leaves something out."""
    counted = len(_rewards(samples))
    return f" (of {counted} of {len(samples)} answers)" if counted < len(samples) else ""


def _headline(train: list[Sample], valid: list[Sample]) -> dict[str, Any]:
    return {
        "train_mean_reward": reward_mean([train]),
        "full_valid_mean_reward": reward_mean([valid]),
        "full_valid_mean_parse_error": _share(valid, lambda sample: sample.grade.error == "sample_parse_error"),
        "mean_unresponsive_rewards": _share(train, lambda sample: sample.reward is None),
        "reasoning_tokens_mean": _mean([sample.answer.reasoning_tokens for sample in train]),
        "valid_reasoning_tokens_mean": _mean([sample.answer.reasoning_tokens for sample in valid]),
        "completion_tokens_mean": _mean([len(sample.rollout.token_ids) for sample in train]),
        "valid_completion_tokens_mean": _mean([len(sample.rollout.token_ids) for sample in valid]),
    }


def _groups(train: Groups | None) -> dict[str, float | None]:
    """How much there is to compare within the groups: without a spread of rewards nothing is learned."""
    spreads = [stdev(rewards) if len(rewards) > 1 else 0.0 for rewards in map(_rewards, train or [])]
    return {"reward_std": _mean(spreads), "frac_reward_zero_std": _mean([float(spread == 0) for spread in spreads])}


def _scores(grader: Grader, parts: dict[str, list[Sample]]) -> Scores:
    rows = [
        GraderScores(
            name=name,
            type=kind,
            **_mean_and_count({part: _part_rewards(samples, key) for part, samples in parts.items()}),
        )
        for key, name, kind in _graders(grader)
        if not (key is None and grader.parts)
    ]
    whole = _mean_and_count({part: _rewards(samples) for part, samples in parts.items()})
    return Scores(**whole, graders=rows)


def _mean_and_count(rewards: dict[str, list[float]]) -> dict[str, Any]:
    means = {f"{part}_reward_mean": _mean(values) for part, values in rewards.items()}
    return means | {f"{part}_reward_count": len(values) for part, values in rewards.items()}


def _errors(grader: Grader, parts: dict[str, list[Sample]]) -> list[dict[str, Any]]:
    rows = []
    for key, name, kind in _graders(grader):
        row: dict[str, Any] = {"name": name, "type": kind}
        for part, samples in parts.items():
            found: list[str | None] = [
                sample.grade.error if key is None else sample.grade.sub_errors.get(key) for sample in samples
            ]
            for error in GRADE_ERRORS:
                row[f"{part}_{error}_mean"] = _mean([float(each == error) for each in found])
                row[f"{part}_{error}_count"] = found.count(error) if samples else None
        rows.append(row)
    return rows


def _graders(grader: Grader) -> list[tuple[str | None, str, str]]:
    """Key, name and type of the parts of a multi grader and of the grader itself, whose key is None."""
    parts = grader.parts.items()
    return [*((key, key, part.type) for key, part in parts), (None, grader.name, grader.type)]


def _part_rewards(samples: list[Sample], key: str | None) -> list[float]:
    if key is None:
        return _rewards(samples)
    return [sample.grade.sub_rewards[key] for sample in samples if key in sample.grade.sub_rewards]


def _judged(grader: Grader) -> list[tuple[str | None, str, str, str]]:
    """Key, name, type and model of those that ask a model; the key of a grader that is no part of one is None."""
    singles = grader.parts or {None: grader}
    return [(key, key or each.name, each.type, each.judge) for key, each in singles.items() if each.judge is not None]


def tokens_by_model(grader: Grader, parts: dict[str, list[Sample]]) -> dict[str, dict[str, int]]:
    """What judges used, by model."""
    models = dict.fromkeys(model for _, _, _, model in _judged(grader))
    return {
        model: {
            f"{part}_{kind}": sum(getattr(sample.grade.usage.get(model, TokenUsage()), kind) for sample in samples)
            for part, samples in parts.items()
            for kind in TOKENS
        }
        for model in models
    }


def _usage_of_judges(grader: Grader, parts: dict[str, list[Sample]]) -> list[dict[str, Any]]:
    """What judges used, by grader."""
    rows = []
    for key, name, type_, model in _judged(grader):
        row: dict[str, Any] = {"name": name, "type": type_, "model": model}
        for part, samples in parts.items():
            grades = [sample.grade for sample in samples]
            used = [
                (each.usage.get(model) if key is None else each.sub_usage.get(key)) or TokenUsage() for each in grades
            ]
            for kind in TOKENS[:2]:
                counts = [getattr(each, kind) for each in used]
                row[f"{part}_{kind}_mean"], row[f"{part}_{kind}_count"] = _mean(counts), sum(counts) if counts else None
        rows.append(row)
    return rows


def _reasoning(parts: dict[str, list[Sample]]) -> dict[str, float | None]:
    usage: dict[str, float | None] = {}
    for part, samples in parts.items():
        tokens = [sample.answer.reasoning_tokens for sample in samples]
        usage[f"{part}_reasoning_tokens_mean"] = _mean(tokens)
        usage[f"{part}_reasoning_tokens_count"] = sum(tokens) if samples else None
    return usage


def _completions(train: list[Sample]) -> Completions:
    lengths = [len(sample.rollout.token_ids) for sample in train]
    return Completions(
        mean_length=_mean(lengths),
        min_length=min(lengths, default=None),
        max_length=max(lengths, default=None),
        clipped_ratio=_share(train, lambda sample: sample.rollout.finish_reason == "length"),
    )


def _timing(grader: Grader, parts: dict[str, list[Sample]], seconds: dict[str, float]) -> Timing:
    latencies: dict[str, float | None] = {}
    for part, phase in (("train", "grading"), ("valid", "eval_grading")):
        samples = parts[part]
        spent = seconds.get(phase, 0.0) + seconds.get(f"{phase}_hidden", 0.0)
        latencies[f"{part}_execution_latency_mean"] = spent / len(samples) if samples else None
    always = {name: seconds.get(name, 0.0) for name in ("sampling", "training", "eval", "full_iteration")}
    return Timing(step=seconds | always, graders=[Latency(name=grader.name, type=grader.type, **latencies)])


def shown(sample: Sample) -> ShownSample:
    asked = sample.prompt.item["messages"][-1].get("content")
    return ShownSample(prompt=str(asked)[:MAX_PROMPT], answer=sample.answer.text[:MAX_ANSWER], reward=sample.reward)


def _flat(groups: Groups | None) -> list[Sample]:
    return [sample for group in groups or [] for sample in group]


def _rewards(samples: Sequence[Sample]) -> list[float]:
    return [sample.reward for sample in samples if sample.reward is not None]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _share(samples: list[Sample], holds: Any) -> float | None:
    return _mean([float(holds(sample)) for sample in samples])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
