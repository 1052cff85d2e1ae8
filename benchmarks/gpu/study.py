"""Objectives compared in the service's own trainer on a language-model-like task, several runs at a time on one GPU.

    python -m benchmarks.gpu.study OUT --budget 410                      # on a GPU
    python -m benchmarks.gpu.study OUT --budget 400 --base FOLDER --size tiny --names 300 --things 200 --digits 1 \\
        --events 2 --seeds 1 --steps 8 --processes 1 --regimes fast:1e-3:4:0 --batch-size 8 --held-out 100

First ``benchmarks.gpu.bookkeeping`` makes a base model (unless ``--base`` names one). Then every objective is run in
every regime with every seed: the same seed gives the same prompts in the same order, the same random numbers to the
sampler, and the same budget of steps. Objectives have their defaults; ``clip-higher`` is clipping at 0.2 and 0.28. A
regime is ``name:learning rate:mini-batches:max_staleness``; the learning rate matters to each objective, so read the
regimes together and not the best row alone. At the end of a run its model answers the held-out problems, greedily and
sampled with random numbers that are the same for all.

Runs are begun seed by seed, and of a seed regime by regime, so that a cut leaves whole comparisons. At ``--budget``
seconds after the start everything ends: what is under way is stopped and counts for nothing in the summary.

OUT gets ``study.jsonl``, written line by line as things happen: one ``base`` line, then lines of ``step`` (numbers of
the trainer; a divergence "before" is that of the new policy to the old one, "after" that of its projection), ``run``
(held-out success of a finished run; ``right`` has a 0 or 1 for every problem) and ``failure``. ``summary.json`` has for
each regime and objective: success, and its difference to clipping over the same seeds and problems with the 95 %
interval of a bootstrap over seeds and problems (with few seeds it is too narrow for other seeds); mean training reward
over all steps; the first step at which the mean training reward of three steps reached ``--target`` (null: never); and
the means over steps and seeds of the trainer's numbers, of which ``last`` are those of the last five steps.
"""

import argparse
import contextlib
import fcntl
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.gpu import bookkeeping

OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip": {"objective": "clip"},
    "troll": {"objective": "troll"},
    "troll-pessimistic": {"objective": "troll", "pessimistic": True},
    "dppo-tv": {"objective": "dppo", "dppo_divergence": "tv"},
    "dppo-kl": {"objective": "dppo", "dppo_divergence": "kl"},
    "gspo": {"objective": "gspo"},
    "cispo": {"objective": "cispo"},
    "sapo": {"objective": "sapo"},
    "clip-higher": {"objective": "clip", "clip_high": 0.28},
}
BASE = "clip"
REGIMES = ("gentle:1e-5:8:0", "fast:5e-5:8:0", "aggressive:2e-4:16:1")
LAST = 5
"""Steps at the end of a run."""
RESAMPLES = 2000
EVALUATION_SEED = 2026


@dataclass(frozen=True)
class Regime:
    name: str
    learning_rate: float
    mini_batches: int
    max_staleness: int

    @classmethod
    def parse(cls, text: str) -> "Regime":
        name, rate, mini_batches, staleness = text.split(":")
        return cls(name, float(rate), int(mini_batches), int(staleness))


@dataclass(frozen=True)
class Plan:
    """One run."""

    seed: int
    regime: Regime
    objective: str

    @property
    def key(self) -> dict[str, Any]:
        return {"seed": self.seed, "regime": self.regime.name, "objective": self.objective}


@dataclass(frozen=True)
class Study:
    """What all runs share."""

    out: Path
    work: Path
    """Where models and rows lie while they are needed."""
    task: bookkeeping.Task
    steps: int
    batch_size: int
    group_size: int
    target: float

    @property
    def base(self) -> Path:
        return self.work / "base"

    @property
    def held_out(self) -> Path:
        return self.work / "held-out.jsonl"

    def tell(self, kind: str, **data: Any) -> None:
        """Add a line to ``study.jsonl``."""
        line = json.dumps({"kind": kind, **data}) + "\n"
        with (self.out / "study.jsonl").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(line)
            file.flush()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "study.jsonl").read_text().splitlines()]


def plans(seeds: int, regimes: Sequence[Regime], objectives: Sequence[str]) -> list[Plan]:
    return [
        Plan(seed, regime, objective) for seed in range(1, seeds + 1) for regime in regimes for objective in objectives
    ]


def work_through(study: Study, todo: Sequence[Plan], begun: Any, processes: int) -> None:
    """Run what no other process has begun, one after the other. ``begun`` counts, for all of them."""
    import torch

    torch.set_num_threads(1)
    if torch.cuda.is_available():
        # Each keeps to its share: torch holds on to what it has freed until it may have no more, whoever needs it.
        torch.cuda.set_per_process_memory_fraction(0.9 / processes)
    while True:
        with begun.get_lock():
            number = begun.value
            begun.value += 1
        if number >= len(todo):
            return
        try:
            run(study, todo[number], number)
        except Exception:
            study.tell("failure", **todo[number].key, message=traceback.format_exc()[-1500:])


def run(study: Study, plan: Plan, number: int) -> None:
    """One run of the service's trainer, and what its model then can do."""
    from workers import wire
    from workers.training.__main__ import run_one_job
    from workers.training.processes.channel import Channel

    folder = study.work / f"run-{number}"
    folder.mkdir()
    models: list[Path] = []

    def take(raw: bytes) -> None:
        line = wire.parse(raw)
        if isinstance(line, wire.Event) and line.type == "metrics" and line.data is not None:
            study.tell("step", **plan.key, **_numbers(line.data))
        elif isinstance(line, wire.Result):
            models.append(line.model_path)
        elif isinstance(line, wire.Failure):
            study.tell("failure", **plan.key, message=line.message)

    channel = Channel(take)
    path = folder / "run.json"
    path.write_text(_spec(study, plan, folder).model_dump_json())
    channel.starts.put(path)
    started = time.monotonic()
    code = run_one_job(channel)
    seconds = time.monotonic() - started
    if code == wire.ExitCode.DONE:
        study.tell("run", **plan.key, seconds=round(seconds, 1), **_held_out(study, models[-1]))
    shutil.rmtree(folder)


def _spec(study: Study, plan: Plan, folder: Path) -> Any:
    from service.graders.schemas import parse_grader
    from service.jobs.hyperparameters.option import resolve
    from service.jobs.hyperparameters.reinforcement import Hyperparameters
    from service.jobs.methods.reinforcement import Reinforcement
    from service.jobs.spec import JobSpec, RunSpec

    asked = {
        "batch_size": study.batch_size,
        "group_size": study.group_size,
        "learning_rate": plan.regime.learning_rate,
        "mini_batches": plan.regime.mini_batches,
        "max_staleness": plan.regime.max_staleness,
        "n_steps": study.steps,
        # An evaluation also saves a checkpoint.
        "eval_interval": study.steps,
        "max_completion_tokens": study.task.max_completion_tokens,
        # Processes that share a GPU and its processors have no room for all activations, nor for compilers.
        "gradient_checkpointing": "always",
        "torch_compile": "never",
        "rollout_engine": "transformers",
        **OBJECTIVES[plan.objective],
    }
    resolved = resolve(Hyperparameters.model_validate(asked), training_rows=study.steps * study.batch_size)
    method = Reinforcement(grader=parse_grader(bookkeeping.grader(), "grader"), hyperparameters=resolved)
    return RunSpec(
        job_id="ftjob-study",
        attempt=1,
        job=JobSpec(model="base", training_file="train", validation_file="valid", method=method, seed=plan.seed),
        model_path=study.base,
        training_path=study.work / "train.jsonl",
        validation_path=study.work / "valid.jsonl",
        checkpoints=[],
        output_dir=folder / "out",
    )


def _numbers(data: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the metrics of a step."""
    kept = {
        "step": data["step"],
        "train_reward": data["train_mean_reward"],
        "valid_reward": data["full_valid_mean_reward"],
        "tokens": data["completion_tokens_mean"],
        "groups_alike": data["frac_reward_zero_std"],
        "numbers": data["troll"],
        "seconds": {name: round(value, 3) for name, value in data["timing"]["step"].items() if value},
    }
    if data["samples"]:
        kept["sample"] = data["samples"][0]
    return kept


def _held_out(study: Study, model: Path) -> dict[str, Any]:
    """Greedy and sampled answers to the held-out problems."""
    return {
        name: bookkeeping.evaluate(
            model, study.held_out, study.task.max_completion_tokens, temperature, EVALUATION_SEED
        )
        for name, temperature in (("greedy", 0.0), ("sampled", 1.0))
    }


def summarise(study: Study) -> dict[str, Any]:
    """Everything that is known so far, by regime and objective."""
    lines = study.lines()
    finished = {_run_of(line): line for line in lines if line["kind"] == "run"}
    curves: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["kind"] == "step" and line["step"]:
            curves[_run_of(line)].append(line)
    rows: dict[str, dict[str, Any]] = defaultdict(dict)
    for regime, objective in dict.fromkeys((run[0], run[1]) for run in finished):
        seeds = sorted(run[2] for run in finished if run[:2] == (regime, objective))
        runs = [finished[regime, objective, seed] for seed in seeds]
        steps = [curves[regime, objective, seed] for seed in seeds]
        row: dict[str, Any] = {"seeds": seeds}
        for how in ("sampled", "greedy"):
            row[f"{how}_success"] = fmean(each[how]["success"] for each in runs)
            pairs = [
                (finished[regime, objective, seed][how]["right"], finished[regime, BASE, seed][how]["right"])
                for seed in seeds
                if (regime, BASE, seed) in finished
            ]
            row[f"{how}_minus_{BASE}"] = difference(pairs) if pairs and objective != BASE else None
        row["success_by_seed"] = [round(each["sampled"]["success"], 4) for each in runs]
        row["train_reward"] = _mean(each["train_reward"] for run in steps for each in run)
        row["steps_to_target"] = [_reached(run, study.target) for run in steps]
        row["tokens"] = fmean(each["sampled"]["tokens_mean"] for each in runs)
        row["seconds_a_run"] = fmean(each["seconds"] for each in runs)
        row["numbers"] = _means(each["numbers"] for run in steps for each in run)
        row["last"] = _means(each["numbers"] for run in steps for each in run[-LAST:])
        rows[regime][objective] = row
    return {
        "base": next((line for line in lines if line["kind"] == "base"), None),
        "failures": [line for line in lines if line["kind"] == "failure"],
        "unfinished": [{"run": run, "steps": len(steps)} for run, steps in curves.items() if run not in finished],
        "regimes": rows,
    }


def difference(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Mean difference of two runs' success, and the 95 % interval of a bootstrap over pairs and problems."""
    apart = [[int(a) - int(b) for a, b in zip(*pair, strict=True)] for pair in pairs]
    dice, problems = random.Random(0), range(len(apart[0]))
    means = []
    for _ in range(RESAMPLES):
        chosen = dice.choices(problems, k=len(problems))
        means.append(
            fmean(sum(map(seed.__getitem__, chosen)) / len(chosen) for seed in dice.choices(apart, k=len(apart)))
        )
    means.sort()
    low, high = means[round(0.025 * RESAMPLES)], means[round(0.975 * RESAMPLES) - 1]
    return {
        "mean": round(fmean(map(fmean, apart)), 4),
        "interval": [round(low, 4), round(high, 4)],
        "by_seed": [round(fmean(seed), 4) for seed in apart],
    }


def _run_of(line: dict[str, Any]) -> tuple[str, str, int]:
    return line["regime"], line["objective"], line["seed"]


def _reached(steps: Sequence[dict[str, Any]], target: float) -> int | None:
    """The first step at which the mean reward of the last three reached the target."""
    rewards = [(each["step"], each["train_reward"]) for each in steps if each["train_reward"] is not None]
    for number in range(2, len(rewards)):
        if fmean(reward for _, reward in rewards[number - 2 : number + 1]) >= target:
            return int(rewards[number][0])
    return None


def _means(rows: Iterable[dict[str, float | None]]) -> dict[str, float]:
    values = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if value is not None:
                values[name].append(value)
    return {name: float(f"{fmean(each):.5g}") for name, each in values.items()}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def prepare(study: Study, given: argparse.Namespace) -> None:
    """The base model, all rows, and what the base model can do."""
    started = time.monotonic()
    if given.base:
        study.base.symlink_to(given.base.resolve())
        made: dict[str, Any] = {"folder": str(given.base)}
    else:
        made = bookkeeping.build(study.base, study.task, given.size, given.pretrain_seconds)
    counts = {"train": study.steps * study.batch_size, "valid": 64, "held-out": given.held_out}
    for number, (name, count) in enumerate(counts.items()):
        bookkeeping.write_rows(study.work / f"{name}.jsonl", study.task, count, number)
    study.tell("base", **made, **_held_out(study, study.base), seconds=round(time.monotonic() - started, 1))


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, required=True, help="seconds from the start to the summary")
    parser.add_argument("--base", type=Path, help="a base model that was made before, with the same options")
    parser.add_argument("--pretrain-seconds", type=float, default=110)
    parser.add_argument("--processes", type=int, default=8, help="runs at a time, each on its share of the memory")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--regimes", nargs="+", type=Regime.parse, default=[Regime.parse(each) for each in REGIMES])
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--target", type=float, default=0.6)
    parser.add_argument("--work", type=Path, help="for models and rows; needs 2 GB a process")
    bookkeeping.add_arguments(parser)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="troll-study-", dir=given.work))
    study = Study(
        given.out, work, bookkeeping.task_of(given), given.steps, given.batch_size, given.group_size, given.target
    )
    study.tell("options", arguments=sys.argv[1:])
    try:
        prepare(study, given)
        todo = plans(given.seeds, given.regimes, given.objectives)
        context = multiprocessing.get_context("spawn")
        begun = context.Value("i", 0)
        workers = [
            context.Process(target=work_through, args=(study, todo, begun, given.processes))
            for _ in range(min(given.processes, len(todo)))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(0.0, started + given.budget - time.monotonic()))
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            worker.join()
    finally:
        summary = summarise(study)
        (given.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps({"seconds": round(time.monotonic() - started, 1), "finished": _finished(summary)}))


def _finished(summary: dict[str, Any]) -> dict[str, Any]:
    return {
        regime: {name: [round(row["sampled_success"], 3), row[f"sampled_minus_{BASE}"]] for name, row in rows.items()}
        for regime, rows in summary["regimes"].items()
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
