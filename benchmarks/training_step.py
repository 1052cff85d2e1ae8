"""Samples per second of a whole training step, against TRL's `GRPOTrainer` on the same model and task.

    python -m benchmarks.training_step [--steps 20]

The same tiny Qwen3 with the same random weights, 32 prompts of 8 answers (256 samples) and 8 optimizer updates a step,
answers of up to 8 tokens, temperature 1, string equality as the reward, AdamW. Each side runs in a process of its own,
one after the other, twice; the first steps of each are not counted. Evaluation and checkpoints are not in the figures.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from service.cli import demo as client
from service.graders.schemas import parse_grader
from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from service.jobs.methods.reinforcement import Reinforcement
from service.jobs.spec import JobSpec, RunSpec

PROMPTS, GROUP, UPDATES, MAX_TOKENS, WARM_UP = 32, 8, 8, 8, 3
PHASES = ("sampling", "grading", "old_log_probs", "training", "sync")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--trl", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trl:
        print(json.dumps(run_trl(arguments.trl, arguments.steps)))
        return
    with tempfile.TemporaryDirectory(prefix="troll-bench-") as name:
        folder = Path(name)
        save_model(folder / "base")
        client.write_rows(folder)
        ours, theirs = [], []
        for number in range(2):
            ours.append(run_ours(folder, arguments.steps, number))
            theirs.append(run_trl_apart(folder, arguments.steps))
    tell(ours, theirs, arguments.steps)


def save_model(folder: Path) -> None:
    """The demo's architecture with random weights."""
    import torch

    from workers import demo

    torch.manual_seed(0)
    tokenizer = demo.make_tokenizer()
    demo.make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_ours(folder: Path, steps: int, number: int) -> list[dict[str, float]]:
    """The seconds of each counted step, by phase."""
    asked = Hyperparameters(
        batch_size=PROMPTS,
        group_size=GROUP,
        mini_batches=UPDATES,
        max_completion_tokens=MAX_TOKENS,
        learning_rate=1e-6,
        n_steps=steps + WARM_UP,
        eval_interval=steps + WARM_UP,
    )
    spec = RunSpec(
        job_id="ftjob-bench",
        attempt=1,
        job=JobSpec(
            model="base",
            training_file="file-1",
            validation_file="file-2",
            method=Reinforcement(
                grader=parse_grader(client.GRADER, "grader"),
                hyperparameters=resolve(asked, training_rows=1000),
            ),
            seed=1,
        ),
        model_path=folder / "base",
        training_path=folder / "additions.jsonl",
        validation_path=folder / "held-out.jsonl",
        checkpoints=[],
        output_dir=folder / f"out-{number}",
    )
    path = folder / "run.json"
    path.write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "workers.training", "--run", str(path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    events = [json.loads(line) for line in lines if '"type":"metrics"' in line]
    # The last step evaluates as well.
    return [event["data"]["timing"]["step"] for event in events if WARM_UP < event["data"]["step"] < steps + WARM_UP]


def run_trl_apart(folder: Path, steps: int) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.training_step", "--trl", str(folder), "--steps", str(steps)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def run_trl(folder: Path, steps: int) -> list[float]:
    """The seconds of each counted step: one batch of rollouts and its updates."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.marks.append(time.perf_counter())

    def exact(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        return [float(said[0]["content"] == right) for said, right in zip(completions, answer, strict=True)]

    rows = [json.loads(line) for line in (folder / "additions.jsonl").read_text().splitlines()]
    clock = Clock()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "base", dtype="float32"),
        reward_funcs=exact,
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1000,
            disable_tqdm=True,
            gradient_checkpointing=False,
            per_device_train_batch_size=PROMPTS * GROUP // UPDATES,
            steps_per_generation=UPDATES,
            num_generations=GROUP,
            max_completion_length=MAX_TOKENS,
            max_steps=(steps + WARM_UP) * UPDATES,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            temperature=1.0,
        ),
        train_dataset=Dataset.from_list([{"prompt": row["messages"], "answer": row["answer"]} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
        callbacks=[clock],
    )
    trainer.train()
    ends = clock.marks[UPDATES - 1 :: UPDATES]
    return [end - start for start, end in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]


def tell(ours: list[list[dict[str, float]]], theirs: list[list[float]], steps: int) -> None:
    samples = PROMPTS * GROUP
    our_rates = [samples / statistics.median(step["full_iteration"] for step in run) for run in ours]
    their_rates = [samples / statistics.median(run) for run in theirs]
    ratios = [our / their for our, their in zip(our_rates, their_rates, strict=True)]
    whole = sum(step["full_iteration"] for run in ours for step in run)
    inside = {phase: sum(step.get(phase, 0.0) for run in ours for step in run) / whole for phase in PHASES}
    # Reading the old policy is a part of the training phase.
    inside["training"] -= inside["old_log_probs"]
    other = 1 - sum(inside.values())
    table = report.table(
        ["trainer", "samples per second, both runs", "ratio to TRL"],
        [
            ["this service", ", ".join(f"{rate:,.0f}" for rate in our_rates), ", ".join(f"{r:.2f}" for r in ratios)],
            ["TRL `GRPOTrainer`", ", ".join(f"{rate:,.0f}" for rate in their_rates), "1"],
        ],
    )
    split = ", ".join(f"{name} {share:.0%}" for name, share in [*inside.items(), ("other", other)])
    setting = (
        f"`python -m benchmarks.training_step`: {samples} samples and {UPDATES} updates a step, {steps} steps, medians. "
        f"{report.machine(('torch', 'transformers', 'trl'))}."
    )
    report.write_section("training-step", "The training step", f"{setting}\n\n{table}\n\nWhere our time goes: {split}.")


if __name__ == "__main__":
    main()
