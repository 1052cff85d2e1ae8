"""The study: its grid, its statistics, and a run of it through a service."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers.utils import logging

from benchmarks.study import __main__ as command
from benchmarks.study import report, runs
from benchmarks.study.grid import GRID, Grid
from benchmarks.study.summary import Cell, Difference, best, cells, reached
from examples.tasks.registry import TASKS

ROOT = Path(__file__).parents[3]
SMALL: dict[str, Any] = {
    "baseline": "clip",
    "rows": {"train": 8, "valid": 4, "held-out": 6, "seed": 1},
    "hyperparameters": {"batch_size": 4, "group_size": 2, "mini_batches": 1},
    "tasks": {"additions": {"n_steps": 2, "target": 0.5}},
    "estimators": ["grpo"],
    "conditions": {"on policy": {}},
    "learning_rates": [1e-4],
    "forms": {},
    "objectives": {"clip": []},
    "seeds": [1],
    "budgets": {"all": {}},
}


TOLD: dict[str, Any] = {
    "steps": {
        "step": [0, 1, 2],
        "valid_reward": [0.1, None, 0.2],
        **{name: [None, 0.1, 0.2] for name in ("train_reward", "entropy", "kl", "held_back", "grad_norm")},
    },
    "seconds": {"job": 9, "steps": 4},
}
"""What a page reads of a run beside its end."""


def grid(tmp_path: Path, **changed: Any) -> Grid:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(SMALL | changed))
    return Grid.read(path, "all")


def ended(seed: int, success: float, valid: float = 0.0, **changed: Any) -> dict[str, Any]:
    """A run as ``runs.run`` tells of it, as far as the summary reads it."""
    measured = {how: {"success": success} for how in ("sampled", "greedy")}
    run: dict[str, Any] = {"task": "additions", "estimator": "grpo", "condition": "on policy", "objective": "clip"}
    run |= {"setting": {}, "learning_rate": 1e-4}
    rest = {"seed": seed, "error": None, "held_out": measured, "steps": {"valid_reward": [0.0, valid]}}
    return run | rest | changed


@pytest.mark.parametrize("budget", yaml.safe_load(GRID.read_text())["budgets"])
def test_every_run_of_the_grid_is_another(budget: str) -> None:
    plans = list(Grid.read(GRID, budget).plans())
    assert len({plan.key for plan in plans}) == len(plans) > 0


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"objectives": {"clip": [], "clop": []}}, "what no job may have"),
        ({"objectives": {"clip": [{"clip_hihg": 0.3}]}}, "what no job may have"),
        ({"objectives": {"troll": []}}, "the objectives lack 'clip'"),
        ({"objectives": {"clip": [{"clip_high": 0.3}], "troll": [{}, {}]}}, "some are tuned more"),
        ({"learning_rates": [0]}, "what no job may have"),
        ({"tasks": {"subtractions": {"n_steps": 2, "target": 0.5}}}, "tasks that do not exist: subtractions"),
        ({"tasks": {"additions": {"n_steps": 2}}}, "give additions both"),
        ({"seed": [1]}, r"see \['seed'\]"),
        ({"budgets": {"some": {}}}, "has no budget 'all', only some"),
    ],
)
def test_a_grid_that_asks_for_what_there_is_not_is_refused(changed: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        grid(tmp_path, **changed)


def test_rates_may_be_written_as_people_do(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(SMALL).replace("- 0.0001", "- 1e-4"))
    assert "1e-4" in path.read_text()
    assert Grid.read(path, "all").learning_rates == [1e-4]


def test_defaults_come_first_and_seed_by_seed(tmp_path: Path) -> None:
    objectives = {"clip": [{"clip_high": 0.3}], "troll": [{"kl_bound": 0.1}]}
    plans = list(grid(tmp_path, objectives=objectives, learning_rates=[1e-4, 1e-3], seeds=[1, 2]).plans())
    assert len(plans) == 2 * 2 * 2 * 2
    assert [bool(plan.setting) for plan in plans] == [False] * 8 + [True] * 8
    assert [plan.seed for plan in plans] == [1, 1, 1, 1, 2, 2, 2, 2] * 2
    assert [plan.objective for plan in plans] == ["clip", "troll"] * 8


def test_a_key_changes_with_what_is_asked_and_with_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plan,) = grid(tmp_path).plans()
    changed = [
        replace(plan, seed=2),
        replace(plan, hyperparameters=plan.hyperparameters | {"n_steps": 3}),
        replace(plan, rows=plan.rows | {"held-out": 7}),
    ]
    keys = {plan.key, *(each.key for each in changed)}
    task = TASKS["additions"]
    monkeypatch.setitem(TASKS, "additions", replace(task, recipe=replace(task.recipe, seed=5)))
    keys.add(plan.key)
    assert len(keys) == 5


def test_an_objective_without_settings_is_not_compared_at_its_best(tmp_path: Path) -> None:
    objectives = {"clip": [{"clip_high": 0.3}], "troll": [{"kl_bound": 0.1}], "dppo": []}
    assert grid(tmp_path, objectives=objectives).tuned == ["clip", "troll"]


@pytest.mark.parametrize("pairs", [[0.1, -0.05, 0.02], [0.3, 0.1, 0.2, 0.5], [0.01, -0.02, 0.03, 0.005, -0.01]])
def test_intervals_are_those_of_every_resample_there_is(pairs: list[float]) -> None:
    means = [np.mean(chosen) for chosen in itertools.product(pairs, repeat=len(pairs))]
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    difference = Difference(pairs)
    assert difference.interval == pytest.approx((low, high), abs=0.03 * (max(pairs) - min(pairs)))
    assert difference.mean == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([0.1, 0.2], "ahead with every seed"),
        ([-0.1], "behind with every seed"),
        ([0.1, -0.1], "mixed"),
        ([0.0, 0.0], "mixed"),
        ([0.1, 0.2, 0.1, 0.3, 0.2], "ahead"),
        ([-0.1, -0.2, -0.1, -0.3, -0.2], "behind"),
        ([0.1, -0.2, 0.1, 0.3, -0.2], "a tie"),
        ([0.0] * 5, "a tie"),
    ],
)
def test_verdicts(pairs: list[float], verdict: str) -> None:
    assert Difference(pairs).verdict == verdict


def test_differences_are_over_the_seeds_that_both_have_and_that_ended() -> None:
    mine = Cell({1: ended(1, 0.5), 2: ended(2, 0.7), 3: ended(3, 0.9)})
    theirs = Cell({1: ended(1, 0.4), 3: ended(3, 0.0, error="it broke"), 2: ended(2, 0.9)})
    difference = mine.minus(theirs)
    assert difference is not None
    assert difference.pairs == pytest.approx([0.1, -0.2])


def test_a_target_is_reached_when_three_steps_are_at_it_on_average() -> None:
    rewards = [None, 0.2, 0.9, 0.2, 0.6, 0.9, 0.1]
    steps: dict[str, list[Any]] = {"step": list(range(7)), "train_reward": rewards}
    assert reached(steps, 0.55) == 4
    assert reached(steps, 0.6) is None


def test_the_best_settings_are_chosen_by_validation_and_not_by_what_is_held_out() -> None:
    results = [
        ended(1, success=0.9, valid=0.5),
        ended(1, success=0.1, valid=0.6, learning_rate=1e-3),
        ended(1, success=0.8, valid=0.4, setting={"clip_high": 0.3}),
    ]
    found = best(cells(results)["additions", "grpo", "on policy"]["clip"])
    assert found is not None
    assert found[0] == (1e-3, ())


def test_a_page_tells_runs_that_failed_and_claims_nothing_of_few_seeds(tmp_path: Path) -> None:
    broken: dict[str, Any] = {"error": "it broke", "steps": {}, "objective": "troll", "seconds": TOLD["seconds"]}
    results = [
        *(ended(seed, 0.4, **TOLD) for seed in (1, 2)),
        *(ended(seed, 0.5, objective="troll", **TOLD) for seed in (1, 2)),
        ended(3, 0.0, **broken),
    ]
    small = grid(tmp_path, objectives={"clip": [], "troll": []}, seeds=[1, 2, 3])
    page = tmp_path / "docs" / "study.md"
    report.write(small, results, {"additions": ended(0, 0.3)["held_out"]}, page, tmp_path / "figures")
    text = page.read_text()
    assert "- additions, grpo, on policy, troll, defaults, 0.0001, seed 3: it broke" in text
    assert "| 0.0001 | troll | 2 of 3 | 0.500 | 0.500 | +0.100 [+0.100, +0.100] |" in text
    assert "**troll**, on policy: ahead with every seed in 1 of 1 comparison." in text
    assert "as few as 2 seeds, so nothing of it is a claim" in text
    assert "Best against best:" not in text
    assert "](../figures/study-additions-grpo.svg)" in text


def test_a_form_of_an_objective_is_compared_under_a_name_of_its_own(tmp_path: Path) -> None:
    form = {"objective": "troll", "pessimistic": True}
    small = grid(tmp_path, objectives={"clip": [], "troll, pessimistic": []}, forms={"troll, pessimistic": form})
    _, plan = small.plans()
    assert plan.objective == "troll, pessimistic"
    assert form.items() <= plan.hyperparameters.items()


def test_a_condition_is_asked_of_every_objective_where_it_applies(tmp_path: Path) -> None:
    stale = {"max_staleness": 4, "partial_rollouts": False, "objectives": ["clip", "troll"], "learning_rates": [1e-3]}
    small = grid(
        tmp_path,
        learning_rates=[1e-4, 1e-3],
        objectives={"clip": [], "troll": [], "dppo": []},
        conditions={"on policy": {}, "4 steps old": stale},
    )
    asked = {(plan.condition, plan.objective): plan.hyperparameters.get("max_staleness") for plan in small.plans()}
    assert {plan.learning_rate for plan in small.plans() if plan.condition == "4 steps old"} == {1e-3}
    on_policy = dict.fromkeys(("on policy", name) for name in ("clip", "troll", "dppo"))
    assert asked == on_policy | {("4 steps old", name): 4 for name in ("clip", "troll")}


def test_older_answers_have_a_table_of_their_own(tmp_path: Path) -> None:
    results = [
        *(ended(seed, 0.6, **TOLD) for seed in (1, 2)),
        *(ended(seed, 0.4, condition="4 steps old", **TOLD) for seed in (1, 2)),
        *(ended(seed, 0.5, condition="4 steps old", objective="troll", **TOLD) for seed in (1, 2)),
    ]
    small = grid(
        tmp_path,
        objectives={"clip": [], "troll": []},
        conditions={"on policy": {}, "4 steps old": {"max_staleness": 4}},
    )
    page = tmp_path / "docs" / "study.md"
    report.write(small, results, {"additions": ended(0, 0.3)["held_out"]}, page, tmp_path / "figures")
    text = page.read_text()
    assert "| additions | 0.0001 | on policy | 0.600 |  |  |" in text
    assert "| additions | 0.0001 | 4 steps old | 0.400 | 0.500 | +0.100 [+0.100, +0.100] |" in text
    assert "## additions, grpo, 4 steps old" in text
    assert "](../figures/study-additions-grpo-4-steps-old.svg)" in text


def test_results_that_others_left_are_not_done_again_and_not_lost(tmp_path: Path) -> None:
    small = grid(tmp_path)
    (plan,) = small.plans()
    theirs = [ended(1, 0.6, **TOLD, key=plan.key), ended(2, 0.5, **TOLD, key="of another grid")]
    results = tmp_path / "results.json"
    bases = {"additions": ended(0, 0.3)["held_out"]}
    results.write_text(json.dumps({"bases": bases, "runs": theirs}))
    study = runs.Study(tmp_path / "out")
    study.adopt(results)
    assert study.result(plan).exists()
    # As an earlier study wrote it, which knew no conditions.
    earlier = json.loads(study.result(plan).read_text())
    del earlier["condition"]
    runs.write(study.result(plan), earlier)
    command.tell(small, study.out, results, tmp_path / "study.md")
    assert {run["key"] for run in json.loads(results.read_text())["runs"]} == {plan.key, "of another grid"}


def test_several_services_begin_nothing_when_the_time_is_over(tmp_path: Path) -> None:
    (plan,) = grid(tmp_path).plans()
    study = runs.Study(tmp_path / "out")
    # As if it had been made, which takes a minute.
    base = study.models / f"additions-{TASKS['additions'].fingerprint}"
    base.mkdir()
    (base / "config.json").touch()
    measured = {how: {"success": 0.4} for how in ("greedy", "sampled")}
    runs.write(study.base(plan), measured)
    options = [
        "--grid",
        tmp_path / "grid.yaml",
        "--budget",
        "all",
        "--out",
        study.out,
        "--services",
        "2",
        "--minutes",
        "0",
    ]
    command = [sys.executable, "-m", "benchmarks.study", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "No run has ended yet: there is nothing to report."
    assert done.stdout.strip() == "additions: base right 40.0% greedy, 40.0% sampled"
    assert list(study.out.glob("service-*")) == []


@pytest.fixture
def environment() -> Iterator[None]:
    """A study forgets the servers that the environment names, which other tests use."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.e2e
@pytest.mark.usefixtures("environment")
def test_a_study_runs_jobs_resumes_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.disable_progress_bar()
    task = TASKS["additions"]
    monkeypatch.setitem(TASKS, "additions", replace(task, recipe=replace(task.recipe, updates=3)))
    small, out, document = grid(tmp_path), tmp_path / "out", tmp_path / "docs" / "study.md"
    (plan,) = small.plans()
    path = runs.Study(out).result(plan)

    command.do(small, out, services=1, until=time.time())
    assert not path.exists(), "a run began after the time that there was"

    command.do(small, out, services=1, until=float("inf"))
    result = json.loads(path.read_text())
    assert (result["status"], result["error"]) == ("succeeded", None)
    assert result["steps"]["step"] == [0, 1, 2]
    assert result["steps"]["valid_reward"][0] is not None
    assert result["steps"]["valid_reward"][-1] is not None
    assert all(None not in result["steps"][name][1:] for name in ("kl", "held_back", "entropy", "grad_norm"))
    assert len(result["held_out"]["sampled"]["right"]) == SMALL["rows"]["held-out"]

    # As if it had been cut off after the job: that one is found again.
    path.unlink()
    command.do(small, out, services=1, until=float("inf"))
    again = json.loads(path.read_text())
    assert {**again, "seconds": None} == {**result, "seconds": None}

    # A run that has ended is not done again, for which no service has to be started.
    monkeypatch.setattr(runs, "start_detached", lambda _: pytest.fail("it started a service"))
    command.do(small, out, services=1, until=float("inf"))
    command.tell(small, out, tmp_path / "study.json", document)
    assert "1 of 1 runs" in capsys.readouterr().out
    assert "| 0.0001 | clip | 1 |" in document.read_text()
    assert (document.parent / "figures" / "study-additions-grpo.svg").read_text().startswith("<?xml")
    assert len(json.loads((tmp_path / "study.json").read_text())["runs"]) == 1
