"""Whether two runs of one job and seed are the same on this machine: full weights and LoRA.

    python -m benchmarks.gpu.same_seed > same-seed.jsonl

Each job is run three times by ``python -m workers.training``: twice as it is, and once where torch chooses
deterministic algorithms and warns where there is none. ``equal`` compares the numbers of every step of the first two,
to the last bit; ``first_difference`` is the step at which they part. ``warnings`` are what torch said in the third.
The model has random weights and the tests' tokenizer, so that making it takes no time. Each job is a line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from service.graders.schemas import parse_grader
from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from service.jobs.methods.reinforcement import Reinforcement
from service.jobs.spec import JobSpec, RunSpec

JOBS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, several answers a row": {"gradient_checkpointing": "never", "group_size": 8},
    "lora": {"lora_rank": 8},
    "lora, nothing computed again": {"lora_rank": 8, "gradient_checkpointing": "never"},
}
HOW = ("first", "second", "deterministic")
Outcome = tuple[int, list[dict[str, Any]], list[str]]
START = """
import os, runpy, sys, warnings
warnings.simplefilter("always")
import torch
torch.use_deterministic_algorithms(sys.argv[2] == "deterministic", warn_only=True)
sys.argv = ["workers.training", "--run", sys.argv[1]]
runpy.run_module("workers.training", run_name="__main__")
"""
GRADER = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "fuzzy_match",
}


def make_model(folder: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from workers import demo

    torch.manual_seed(0)
    tokenizer = demo.make_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{a}+{a + 31}="}], "answer": "0123456789"} for a in range(10, 74)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(root: Path, name: str, asked: dict[str, Any], steps: int) -> Outcome:
    """The exit code, the numbers of every step, and what torch said about determinism; or why it failed."""
    folder = root / name.replace(" ", "-").replace(",", "")
    folder.mkdir()
    wanted = {
        "batch_size": 16,
        "group_size": 4,
        "mini_batches": 2,
        "max_completion_tokens": 24,
        "learning_rate": 1e-3,
        "eval_interval": steps,
        "n_steps": steps,
    }
    resolved = resolve(Hyperparameters.model_validate(wanted | asked), training_rows=64)
    method = Reinforcement(grader=parse_grader(GRADER, "grader"), hyperparameters=resolved)
    spec = RunSpec(
        job_id="ftjob-seed",
        attempt=1,
        job=JobSpec(model="base", training_file="train", validation_file="valid", method=method, seed=1),
        model_path=root / "base",
        training_path=root / "rows.jsonl",
        validation_path=root / "rows.jsonl",
        checkpoints=[],
        output_dir=folder / "out",
    )
    path = folder / "run.json"
    path.write_text(spec.model_dump_json())
    mode = "deterministic" if name.endswith("deterministic") else "plain"
    command = [sys.executable, "-c", START, str(path), mode]
    here = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": here})
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    told = [
        {"step": event["data"]["step"], "reward": event["data"]["train_mean_reward"], **event["data"]["troll"]}
        for event in events
        if event.get("type") == "metrics"
    ]
    said = sorted({line.strip()[:250] for line in ended.stderr.splitlines() if "determinis" in line.lower()})
    if ended.returncode:
        said.append((ended.stderr or ended.stdout)[-500:])
    return ended.returncode, told, said


def first_difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> int | None:
    return next((a["step"] for a, b in zip(one, other, strict=True) if a != b), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--processes", type=int, default=6, help="runs at a time")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="troll-seed-") as name, ThreadPoolExecutor(given.processes) as pool:
        root = Path(name)
        make_model(root / "base")
        write_rows(root / "rows.jsonl")
        begun = {
            job: [pool.submit(run, root, f"{job} {how}", JOBS[job], given.steps) for how in HOW] for job in given.jobs
        }
        for job, runs in begun.items():
            print(json.dumps({"job": job, **compare(*(each.result() for each in runs))}), flush=True)


def compare(first: Outcome, second: Outcome, deterministic: Outcome) -> dict[str, Any]:
    """What the three runs of a job have in common."""
    failed = [outcome for outcome in (first, second, deterministic) if outcome[0]]
    if failed:
        return {"exit_codes": [outcome[0] for outcome in failed], "failures": [outcome[2] for outcome in failed]}
    return {
        "steps": len(first[1]),
        "equal": first[1] == second[1],
        "first_difference": first_difference(first[1], second[1]),
        "as_deterministic": first[1] == deterministic[1],
        "warnings": deterministic[2],
    }


if __name__ == "__main__":
    main()
