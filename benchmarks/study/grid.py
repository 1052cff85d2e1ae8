"""The grid of a study: what is compared, and every run of it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from examples.tasks.registry import TASKS
from service.cli.submission import Loader
from service.jobs.hyperparameters.reinforcement import Hyperparameters

GRID = Path(__file__).with_name("grid.yaml")


@dataclass(frozen=True)
class Plan:
    """One run: a job, of which all that differs between runs is here."""

    task: str
    estimator: str
    condition: str
    objective: str
    setting: dict[str, Any]
    """Options of the objective that are not its defaults."""
    learning_rate: float
    seed: int
    hyperparameters: dict[str, Any]
    """All that is asked of the job."""
    rows: dict[str, int]

    @property
    def key(self) -> str:
        """Changes with anything that changes the outcome: a run of the same key has been done."""
        task = TASKS[self.task]
        told = [self.task, task.fingerprint, task.grader, self.hyperparameters, self.seed, self.rows]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


ON_POLICY = "on policy"
"""The condition without settings of its own."""
ONLY = {"tasks", "estimators", "objectives", "learning_rates"}
"""What of a condition says where it applies; the rest are its hyperparameters."""


@dataclass(frozen=True)
class Grid:
    budget: str
    """Its name: which part of the whole grid this is."""
    baseline: str
    rows: dict[str, int]
    hyperparameters: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    """Steps and the like of each task, and the training reward that is its target."""
    estimators: list[str]
    conditions: dict[str, dict[str, Any]]
    """Hyperparameters that are the same for all objectives, and how old answers are above all."""
    learning_rates: list[float]
    forms: dict[str, dict[str, Any]]
    """Objectives that are another's form: its hyperparameters, under the name they are compared by."""
    objectives: dict[str, list[dict[str, Any]]]
    seeds: list[int]

    @classmethod
    def read(cls, path: Path, budget: str) -> Self:
        """The grid in a file, cut to a budget. Raises ``ValueError`` when the file asks for what there is not."""
        # As in the files of jobs, 1e-4 is a number.
        told = Loader(path.read_text()).get_single_data()
        budgets = told.pop("budgets")
        if budget not in budgets:
            raise ValueError(f"{path} has no budget {budget!r}, only {', '.join(budgets)}.")
        told |= budgets[budget]
        names = {field.name for field in fields(cls)} - {"budget"}
        if wrong := told.keys() ^ names:
            raise ValueError(
                f"{path} and its budget {budget!r} have to name {', '.join(sorted(names))}: see {sorted(wrong)}."
            )
        grid = cls(budget, **told)
        grid._check(path)
        return grid

    def _check(self, path: Path) -> None:
        if unknown := self.tasks.keys() - TASKS.keys():
            raise ValueError(f"{path} names tasks that do not exist: {', '.join(sorted(unknown))}.")
        if without := [name for name, task in self.tasks.items() if "target" not in task or "n_steps" not in task]:
            raise ValueError(f"{path}: give {', '.join(without)} both n_steps and a target.")
        if self.baseline not in self.objectives:
            raise ValueError(f"{path}: the objectives lack {self.baseline!r}, with which the others are compared.")
        if len({len(settings) for settings in self.objectives.values() if settings}) > 1:
            raise ValueError(f"{path}: objectives have different numbers of settings, so that some are tuned more.")
        for plan in self.plans():
            try:
                Hyperparameters.model_validate(plan.hyperparameters)
            except ValueError as error:
                raise ValueError(f"{path} asks for what no job may have: {error}") from error

    @property
    def tuned(self) -> list[str]:
        """The objectives that are compared best against best: those with as many settings as the baseline."""
        number = len(self.objectives[self.baseline])
        return [name for name, settings in self.objectives.items() if len(settings) == number]

    def plans(self) -> Iterator[Plan]:
        """All runs, in an order in which a cut leaves whole comparisons: defaults before the rest, seed by seed."""
        most = max(map(len, self.objectives.values()))
        for number in range(most + 1):
            for seed in self.seeds:
                for rate in self.learning_rates:
                    for (task, estimator, condition), objectives in self.comparisons().items():
                        rates = self.conditions[condition].get("learning_rates", self.learning_rates)
                        for objective, settings in objectives.items() if rate in rates else ():
                            if number <= len(settings):
                                setting = [{}, *settings][number]
                                yield self._plan(task, estimator, condition, objective, setting, rate, seed)

    def comparisons(self) -> dict[tuple[str, str, str], dict[str, list[dict[str, Any]]]]:
        """The objectives and their settings that are compared on each task, with each estimator, under each condition."""
        return {
            (task, estimator, name): {
                objective: settings
                for objective, settings in self.objectives.items()
                if objective in told.get("objectives", self.objectives)
            }
            for name, told in self.conditions.items()
            for task in self.tasks
            for estimator in self.estimators
            if task in told.get("tasks", self.tasks) and estimator in told.get("estimators", self.estimators)
        }

    def _plan(
        self,
        task: str,
        estimator: str,
        condition: str,
        objective: str,
        setting: dict[str, Any],
        rate: float,
        seed: int,
    ) -> Plan:
        own = {name: value for name, value in self.tasks[task].items() if name != "target"}
        asked = {
            **self.hyperparameters,
            "max_completion_tokens": TASKS[task].max_completion_tokens,
            **own,
            "learning_rate": rate,
            **self.forms.get(objective, {"objective": objective}),
            "advantage": estimator,
            **{name: value for name, value in self.conditions[condition].items() if name not in ONLY},
            **setting,
        }
        # It is evaluated before the first step and after the last.
        asked.setdefault("eval_interval", asked["n_steps"])
        return Plan(task, estimator, condition, objective, setting, rate, seed, asked, self.rows)
