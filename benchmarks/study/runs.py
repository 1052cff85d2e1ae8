"""The runs of a study as jobs of a service that is started for them, and what is kept of each.

OUT has ``runs/KEY.json`` for every run that has ended, and a folder of the service's own for each that works. A run
that was cut off goes on from its last checkpoint, because its job does; one that has ended is not repeated. Several
processes may work on one OUT: a run is claimed by a lock, which ends with the process.
"""

import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openai import OpenAI

from benchmarks.study.grid import Plan
from examples.tasks.measure import pass_at_1
from examples.tasks.registry import TASKS
from examples.tasks.task import PARTS
from service.cli.demo import forget_other_services
from service.cli.download import download
from service.cli.following import events
from service.embedded.detached import start_detached, stop_stack
from service.embedded.jail import Jail
from service.embedded.stack import Options

CURVES = ("entropy", "grad_norm")
KL = ("kl_before", "kl_old_new")
"""Each objective has one of them: of the whole distribution, or estimated from the sampled tokens."""
HELD_BACK = ("fraction_projected", "fraction_clipped")
DIGITS = 5


class Study:
    """Where everything of a study lies."""

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.models, self.rows, self.runs = (self.out / name for name in ("models", "rows", "runs"))
        for folder in (self.models, self.rows, self.runs):
            folder.mkdir(parents=True, exist_ok=True)

    def adopt(self, results: Path) -> None:
        """Take over the runs of a file of results that are not known here: what others have done is not repeated."""
        for run in json.loads(results.read_text())["runs"] if results.exists() else ():
            path = self.runs / f"{run['key']}.json"
            if not path.exists():
                write(path, run)

    def prepare(self, plans: Sequence[Plan]) -> None:
        """Rows and base models, and what these can do."""
        for name, plan in {plan.task: plan for plan in plans}.items():
            task = TASKS[name]
            for part in PARTS:
                path = self.file(plan, part)
                if not path.exists():
                    partial = path.with_suffix(".partial")
                    task.write_rows(partial, part, plan.rows[part], plan.rows["seed"])
                    partial.rename(path)
            base = task.base(self.models)
            measured = self.base(plan)
            if not measured.exists():
                write(measured, pass_at_1(base, task, self.file(plan, "held-out")))
            told = json.loads(measured.read_text())
            print(
                f"{name}: base right {_percent(told['greedy'])} greedy, {_percent(told['sampled'])} sampled", flush=True
            )

    def base(self, plan: Plan) -> Path:
        """What the base model of the run's task can do."""
        return self.rows / f"{self._rows_of(plan)}-base.json"

    def file(self, plan: Plan, part: str) -> Path:
        return self.rows / f"{self._rows_of(plan)}-{part}.jsonl"

    def _rows_of(self, plan: Plan) -> str:
        counts = "-".join(str(number) for number in plan.rows.values())
        return f"{plan.task}-{TASKS[plan.task].fingerprint}-{counts}"

    def result(self, plan: Plan) -> Path:
        return self.runs / f"{plan.key}.json"

    @contextmanager
    def claimed(self, plan: Plan) -> Iterator[bool]:
        """Whether the run is ours to do: nobody has done it, or is doing it."""
        with (self.runs / f"{plan.key}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield not self.result(plan).exists()


def work(out: Path, plans: Sequence[Plan], number: int, until: float) -> None:
    """Do what nobody has done, one run after the other. No run begins after ``until``, in seconds of the clock."""
    import torch

    torch.set_num_threads(1)
    study = Study(out)
    todo = [plan for plan in plans if not study.result(plan).exists()]
    if not todo or time.time() >= until:
        return
    forget_other_services()
    # Before the service starts, whose every process inherits it. Threads gain nothing for models this small.
    os.environ |= {"TROLL_MODELS_DIR": str(study.models), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    folder = study.out / f"service-{number}"
    stack = start_detached(Options(folder, port=0, jail=Jail.OFF))
    try:
        client = OpenAI(base_url=stack["base_url"], api_key=stack["api_key"])
        uploaded: dict[Path, str] = {}
        for plan in todo:
            if time.time() >= until:
                return
            with study.claimed(plan) as ours:
                if ours:
                    write(study.result(plan), run(study, client, plan, uploaded))
                    _say(plan, json.loads(study.result(plan).read_text()))
    finally:
        stop_stack(folder)


def work_beside(out: Path, plans: Sequence[Plan], number: int, until: float) -> None:
    """``work`` in a process of its own."""
    stop_in_order()
    work(out, plans, number, until)


def stop_in_order() -> None:
    """From now on a process that is told to end stops its service first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def run(study: Study, client: OpenAI, plan: Plan, uploaded: dict[Path, str]) -> dict[str, Any]:
    """Follow the run's job to its end, begin it unless an earlier study did, and measure its model."""
    began = time.monotonic()
    job_id = _begun_earlier(client, plan) or _begin(study, client, plan, uploaded)
    steps: list[dict[str, Any]] = []
    spent = 0.0
    for event in events(client, job_id):
        if event["type"] == "metrics":
            steps.append(_kept(event["data"]))
            spent += event["data"]["timing"]["step"].get("full_iteration", 0.0)
    job = client.fine_tuning.jobs.retrieve(job_id)
    seconds = {"job": round(time.monotonic() - began, 1), "steps": round(spent, 1)}
    result = {
        "key": plan.key,
        "job": job_id,
        **asdict(plan),
        "status": job.status,
        "seconds": seconds,
        "steps": _columns(steps),
    }
    if job.fine_tuned_model is None:
        # A job that somebody cancelled has no error of its own.
        return result | {"error": (job.error and job.error.message) or f"the job {job.status}"}
    weights = study.out / f"weights-{plan.key}"
    shutil.rmtree(weights, ignore_errors=True)
    download(client, job.fine_tuned_model, weights)
    try:
        result["held_out"] = pass_at_1(weights, TASKS[plan.task], study.file(plan, "held-out"))
    finally:
        shutil.rmtree(weights)
    return result | {"error": None}


def _begun_earlier(client: OpenAI, plan: Plan) -> str | None:
    """The job of a run that was cut off."""
    for job in client.fine_tuning.jobs.list(extra_query={"metadata[study]": plan.key}):
        if job.status not in ("failed", "cancelled"):
            return job.id
    return None


def _begin(study: Study, client: OpenAI, plan: Plan, uploaded: dict[Path, str]) -> str:
    files = {}
    for name, part in (("training_file", "train"), ("validation_file", "valid")):
        path = study.file(plan, part)
        if path not in uploaded:
            uploaded[path] = client.files.create(file=path, purpose="fine-tune").id
        files[name] = uploaded[path]
    task = TASKS[plan.task]
    asked: Any = {"grader": task.grader, "hyperparameters": plan.hyperparameters}
    return client.fine_tuning.jobs.create(
        model=task.base(study.models).name,
        training_file=files["training_file"],
        validation_file=files["validation_file"],
        seed=plan.seed,
        metadata={"study": plan.key},
        method={"type": "reinforcement", "reinforcement": asked},
    ).id


def _kept(data: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the metrics of a step."""
    told = data["troll"]
    return {
        "step": data["step"],
        "train_reward": data["train_mean_reward"],
        "valid_reward": data["full_valid_mean_reward"],
        "kl": next((told[name] for name in KL if name in told), None),
        "held_back": next((told[name] for name in HELD_BACK if name in told), None),
        **{name: told.get(name) for name in CURVES},
    }


def _columns(steps: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """One list for each number. A step that was done again after a restart counts once."""
    once = {step["step"]: step for step in steps}
    names = list(steps[0]) if steps else []
    return {name: [_rounded(once[number][name]) for number in sorted(once)] for name in names}


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def write(path: Path, result: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result) + "\n")
    partial.rename(path)


def _say(plan: Plan, result: dict[str, Any]) -> None:
    end = (
        _percent(result["held_out"]["sampled"]) if result["error"] is None else f"{result['status']}: {result['error']}"
    )
    setting = " ".join(f"{name}={value}" for name, value in plan.setting.items())
    what = f"{plan.task} {plan.estimator} {plan.condition} {plan.objective} {setting or 'defaults'} {plan.learning_rate:g} seed {plan.seed}"
    print(f"{what}: {end} in {result['seconds']['job']:.0f} s", flush=True)


def _percent(measured: dict[str, Any]) -> str:
    return f"{measured['success']:.1%}"
