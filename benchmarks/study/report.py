"""Writes the document of a study: tables, curves, and sentences that say no more than the numbers do."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.study.curves import draw
from benchmarks.study.grid import ON_POLICY, Grid
from benchmarks.study.summary import FEW, LAST, VERDICTS, Cell, Difference, Settings, best, cells
from examples.tasks.registry import TASKS


def write(grid: Grid, results: Sequence[dict[str, Any]], bases: dict[str, Any], document: Path, figures: Path) -> None:
    """``document``, and one figure for each task, estimator and condition in the folder ``figures``."""
    parts = [_introduction(grid, results), *_in_short(grid, results), *_by_age(grid, results)]
    figures.mkdir(parents=True, exist_ok=True)
    for (task, estimator, condition), objectives in cells(results).items():
        where = [task, estimator, *([] if condition == ON_POLICY else [condition])]
        figure = figures / ("-".join(["study", *where]).replace(",", "").replace(" ", "-") + ".svg")
        defaults = {name: found for name, by in objectives.items() if (found := _most_taught(by)) is not None}
        if not defaults:
            continue
        draw(figure, defaults)
        parts += [
            f"## {', '.join(where)}",
            _base(task, bases),
            *_sentences(grid, objectives),
            _against(grid, objectives),
            *_best(grid, objectives),
            _numbers(grid, task, objectives),
            f"![Curves of {', '.join(where)}]({os.path.relpath(figure, document.parent)})",
            "Curves: objectives with their defaults at the learning rate with the best validation reward, mean over seeds; "
            "bands from the lowest to the highest seed.",
        ]
    failed = [run for run in results if run["error"] is not None]
    if failed:
        parts += ["## Runs that failed", *(f"- {_name(run)}: {run['error']}" for run in failed)]
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text("\n\n".join(parts) + "\n")


def _introduction(grid: Grid, results: Sequence[dict[str, Any]]) -> str:
    planned, seconds = len(list(grid.plans())), sum(run["seconds"]["job"] for run in results)
    beside = median(run["seconds"]["job"] - run["seconds"]["steps"] for run in results)
    h = grid.hyperparameters
    choices = f"{_count(len(grid.learning_rates), 'learning rate')}"
    if further := len(grid.objectives[grid.baseline]):
        choices += f" × {_count(1 + further, 'setting')}"
    return f"""# Study

Written by `make study BUDGET={grid.budget}` (`benchmarks/study/`; the grid is `benchmarks/study/grid.yaml`); run it to renew this page. Every
run is a job of the service, created with the official client. {len(results)} of {planned} planned runs have ended, in
{timedelta(seconds=round(seconds))} on CPUs, one core a run. A job took {beside:.0f} s (median) beside its steps: the service, a process that imports torch, the
held-out answers. Tasks and base models are those of `examples/tasks/`.

- A step is {h["batch_size"]} prompts × {h["group_size"]} answers and {h["mini_batches"]} updates. A seed gives all objectives the same prompts in the same order.
- **Success** is the share of {grid.rows["held-out"]} held-out rows that the final model answers rightly, sampled at temperature 1 with random numbers
  that are the same for every run; its standard error is at most {0.5 / grid.rows["held-out"] ** 0.5:.3f}. Nothing is chosen by it: settings are chosen
  by the {grid.rows["valid"]} validation rows.
- **Differences** are to `{grid.baseline}`, seed by seed, with the 95 % percentile interval of a bootstrap over seeds. With fewer than
  {FEW} seeds it is much too narrow, for it cannot be wider than the seeds are apart; read it as a range and not as a test.
- **Default against default** compares objectives with their defaults at each learning rate. **Best against best** takes of each the best of
  {choices}, as many for every objective.
- **Steps to target**: the first step at which the mean training reward of three steps is at the target; "–" where it never was.
- **KL** is the divergence of the policy to that before the step: for TROLL of whole distributions, before the projection; for the others
  estimated from the sampled tokens. Compare it within an objective only. **Held back** is the share of tokens that TROLL projects, or
  whose gradient is cut."""


def _in_short(grid: Grid, results: Sequence[dict[str, Any]]) -> list[str]:
    """How often each objective is ahead, defaults against defaults."""
    told, few, known = [], len(grid.seeds), cells(results)
    for name in grid.objectives:
        for stale in (False, True):
            found = [
                difference
                for (_, _, condition), objectives in known.items()
                for rate in grid.learning_rates
                if name != grid.baseline and stale == (condition != ON_POLICY)
                if (difference := _default(grid, objectives, name, rate)) is not None
            ]
            if found:
                counts = Counter(difference.verdict for difference in found)
                words = ", ".join(f"{verdict} in {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
                age = "with older answers" if stale else ON_POLICY
                told.append(f"- **{name}**, {age}: {words} of {_count(len(found), 'comparison')}.")
                few = min(few, *(len(difference.pairs) for difference in found))
    if not told:
        return []
    parts = [
        "## In short",
        f"With their defaults against `{grid.baseline}` with its own, over tasks, estimators and learning rates. From {FEW} seeds on, ahead and\n"
        "behind mean that the interval leaves out zero, which luck does in more than one of twenty; with fewer, that all seeds agree.",
        "\n".join(told),
    ]
    return (
        [*parts, f"That is with as few as {_count(few, 'seed')}, so nothing of it is a claim."] if few < FEW else parts
    )


def _by_age(grid: Grid, results: Sequence[dict[str, Any]]) -> list[str]:
    """How success falls as answers get older: one row for each task, learning rate and condition."""
    known = cells(results)
    compared = {(task, estimator) for task, estimator, condition in known if condition != ON_POLICY}
    named = sorted(
        {name for where, by in known.items() if where[2] != ON_POLICY for name in by}, key=[*grid.objectives].index
    )
    rows = []
    for task, estimator in sorted(compared):
        for rate in grid.learning_rates:
            for condition in grid.conditions:
                by = known.get((task, estimator, condition), {})
                found = {name: cell for name in named if (cell := by.get(name, {}).get((rate, ()))) is not None}
                if grid.baseline in found:
                    differences = (_default(grid, by, name, rate) for name in named if name != grid.baseline)
                    success = (_share(found[name].success("sampled")) if name in found else "" for name in named)
                    rows.append([task, f"{rate:g}", condition, *success, *map(_told, differences)])
    if not rows:
        return []
    others = [name for name in named if name != grid.baseline]
    head = ["task", "learning rate", "condition", *named, *(f"{name} less {grid.baseline}" for name in others)]
    return [
        "## Older answers",
        "Success of the final model, with defaults. A condition says how many steps the weights that sampled an answer may be behind those "
        "that learn from it (`max_staleness`; `partial_rollouts` off, so that a whole answer is as old as it may be). The old policy is the "
        "trainer's before the step, with the default correction for the sampler; around the sampler it is the policy that sampled "
        "(`old_policy: sampler`).",
        _table(head, rows),
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _base(task: str, bases: dict[str, Any]) -> str:
    told = bases[task]
    return f"{TASKS[task].about.capitalize()}. The base model: {told['sampled']['success']:.1%} sampled, {told['greedy']['success']:.1%} greedy."


def _sentences(grid: Grid, objectives: dict[str, dict[Settings, Cell]]) -> list[str]:
    """One for each objective: at how many learning rates it is ahead, with defaults."""
    told = []
    for name in objectives:
        if name == grid.baseline:
            continue
        found = [
            (rate, difference) for rate in grid.learning_rates if (difference := _default(grid, objectives, name, rate))
        ]
        if not found:
            continue
        each = ", ".join(f"{difference.verdict} at {rate:g} ({_signed(difference)})" for rate, difference in found)
        told.append(f"- **{name}** with its defaults against {grid.baseline}: {each}.")
    return ["\n".join(told)] if told else []


def _against(grid: Grid, objectives: dict[str, dict[Settings, Cell]]) -> str:
    rows = []
    for rate in grid.learning_rates:
        for name, by in objectives.items():
            if (cell := by.get((rate, ()))) is not None:
                difference = None if name == grid.baseline else _default(grid, objectives, name, rate)
                seeds = str(len(cell.ended)) + (f" of {len(cell.runs)}" if len(cell.ended) < len(cell.runs) else "")
                rows.append([f"{rate:g}", name, seeds, *_success(cell), _told(difference)])
    head = ["learning rate", "objective", "seeds", "success", "greedy", f"less {grid.baseline}"]
    return "Default against default:\n\n" + _table(head, rows)


def _best(grid: Grid, objectives: dict[str, dict[Settings, Cell]]) -> list[str]:
    """Nothing where there is nothing to choose, or where some choices have not been tried with every seed."""
    choices = len(grid.learning_rates) * (1 + len(grid.objectives[grid.baseline]))
    tried = [cell for name in grid.tuned for cell in objectives.get(name, {}).values()]
    if choices == 1 or len(tried) < choices * len(grid.tuned) or any(len(c.runs) < len(grid.seeds) for c in tried):
        return []
    chosen = {name: found for name in grid.tuned if (found := best(objectives[name])) is not None}
    if grid.baseline not in chosen:
        return []
    rows = []
    for name, ((rate, setting), cell) in chosen.items():
        difference = None if name == grid.baseline else cell.minus(chosen[grid.baseline][1])
        settings = ", ".join(f"`{option}` {value}" for option, value in setting) or "defaults"
        rows.append([name, f"{rate:g}", settings, f"{cell.validation:.3f}", *_success(cell), _told(difference)])
    head = ["objective", "learning rate", "settings", "validation", "success", "greedy", f"less {grid.baseline}"]
    return ["Best against best:\n\n" + _table(head, rows)]


def _numbers(grid: Grid, task: str, objectives: dict[str, dict[Settings, Cell]]) -> str:
    target = grid.tasks[task]["target"]
    rows = []
    for name, by in objectives.items():
        for (rate, setting), cell in sorted(by.items(), key=lambda item: (item[0][0], str(item[0][1]))):
            settings = ", ".join(f"`{option}` {value}" for option, value in setting) or "defaults"
            steps = ", ".join("–" if step is None else str(step) for step in cell.steps_to(target))
            numbers = [
                cell.mean("train_reward"),
                cell.mean("entropy", LAST),
                cell.mean("kl"),
                cell.mean("held_back"),
                cell.mean("grad_norm"),
            ]
            rows.append([name, f"{rate:g}", settings, steps, *map(_number, numbers)])
    head = [
        "objective",
        "learning rate",
        "settings",
        f"steps to {target}, by seed",
        "training reward",
        f"entropy, last {LAST}",
        "KL",
        "held back",
        "gradient norm",
    ]
    return "All runs, means over steps and seeds:\n\n" + _table(head, rows)


def _default(grid: Grid, objectives: dict[str, dict[Settings, Cell]], name: str, rate: float) -> Difference | None:
    mine, theirs = objectives.get(name, {}).get((rate, ())), objectives.get(grid.baseline, {}).get((rate, ()))
    return mine.minus(theirs) if mine and theirs else None


def _most_taught(by: dict[Settings, Cell]) -> Cell | None:
    found = best({settings: cell for settings, cell in by.items() if not settings[1]})
    return found[1] if found else None


def _success(cell: Cell) -> tuple[str, str]:
    return _share(cell.success("sampled")), _share(cell.success("greedy"))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _told(difference: Difference | None) -> str:
    if difference is None:
        return ""
    between = difference.interval
    return _signed(difference) + (f" [{between[0]:+.3f}, {between[1]:+.3f}]" if between else "")


def _signed(difference: Difference) -> str:
    return f"{difference.mean:+.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(run: dict[str, Any]) -> str:
    setting = json.dumps(run["setting"]) if run["setting"] else "defaults"
    return f"{run['task']}, {run['estimator']}, {run['condition']}, {run['objective']}, {setting}, {run['learning_rate']:g}, seed {run['seed']}"
