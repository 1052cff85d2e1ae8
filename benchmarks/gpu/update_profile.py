"""One update of a model shaped like Qwen3-0.6B on a GPU: seconds, share of the matrix rate, memory, and time by kernel.

    python -m benchmarks.gpu.update_profile > update-profile.jsonl

The update is that of ``benchmarks.update_step``, with 32 answers of 384 tokens to 8 prompts of 128, of layers as they are
and of compiled ones. ``seconds`` is the best of ``--rounds`` updates, and ``deterministic`` the same where torch chooses
deterministic algorithms; ``old_policy`` is what reading the old policy takes before it. The matrix rate is what the GPU does in a product of two 8192 x 8192 bfloat16 matrices; an
update's share of it counts 6 operations for each parameter and token, padding included, whether layers are computed again
or not. ``gigabytes`` are what an update adds to weights and moments at its peak. ``kernels`` are the longest of one update of
TROLL. Every finding is a line of JSON, printed as soon as it is known.
"""

import argparse
import collections
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import report, update_step
from benchmarks.update_step import Step
from workers.modeling.recomputation import When

MATRIX = 8192
SHOWN = 30


def matrix_rate(size: int) -> float:
    """Operations a second of a bfloat16 product of two square matrices."""
    matrix = torch.randn(size, size, device=update_step.device(), dtype=torch.bfloat16)

    def products() -> None:
        for _ in range(10):
            _ = matrix @ matrix

    return 10 * 2 * size**3 / report.best_times({"products": products}, 3)["products"]


def deterministic_seconds(step: Step, rounds: int) -> dict[str, float]:
    """Seconds of an update where torch chooses deterministic algorithms; it warns where there is none."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        return _times(step, rounds)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def _times(step: Step, rounds: int) -> dict[str, float]:
    return report.best_times({name: lambda n=name: step.run(n) for name in update_step.OBJECTIVES}, rounds)


def kernels(step: Step) -> dict[str, Any]:
    """Milliseconds and launches of the kernels of one update."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        step.run("troll")
        report.synchronize()
    spent: collections.Counter[str] = collections.Counter()
    launches: collections.Counter[str] = collections.Counter()
    for event in profiled.events():
        if str(event.device_type).endswith("CUDA"):
            spent[event.name[:100]] += event.time_range.elapsed_us()
            launches[event.name[:100]] += 1
    return {
        "milliseconds": round(sum(spent.values()) / 1e3, 2),
        "launches": sum(launches.values()),
        "longest": [[name, round(us / 1e3, 2), launches[name]] for name, us in spent.most_common(SHOWN)],
    }


def measure(layers: int, rounds: int, matrix: int, lora: bool, recompute: When) -> None:
    """Tell everything, what matters most first."""
    tell(machine=report.machine(("torch", "transformers", "triton")))
    with tempfile.TemporaryDirectory(prefix="troll-bench-") as name:
        folder = Path(name) / "model"
        update_step.save_model(folder, layers)
        update_step.write_samples(folder)
        step = Step(folder, lora, recompute)
    parts = [part for batch in step.batches for part in batch.parts]
    parameters = sum(parameter.numel() for parameter in step.policy.model.parameters())
    tokens = sum(part.input_ids.numel() for part in parts)
    tell(
        attention=step.policy.model.config._attn_implementation,
        micro_batches=[[*part.input_ids.shape, part.layout is not None] for part in parts],
        parameters=parameters,
        tokens=tokens,
    )
    rate = matrix_rate(matrix)
    tell(matrix_teraflops=round(rate / 1e12, 1))
    operations = 6 * parameters * tokens
    for how in ("as they are", "compiled"):
        if how == "compiled":
            started = time.perf_counter()
            step.policy.compile()
            tell(compile_seconds=round(time.perf_counter() - started, 1))
        times = _times(step, rounds)
        shares = {name: round(operations / spent / rate, 4) for name, spent in times.items()}
        tell(layers=how, seconds=times, share_of_matrix_rate=shares)
        tell(layers=how, old_policy=report.best_times({"seconds": step.read_old_policy}, rounds)["seconds"])
        tell(layers=how, gigabytes=round(report.peak_bytes(lambda: step.run("troll")) / 1e9, 2))
        tell(layers=how, kernels=kernels(step))
    tell(deterministic=deterministic_seconds(step, rounds))


def tell(**found: Any) -> None:
    print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--recompute", choices=("gpu", "never"), default="gpu", help="gradient_checkpointing")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--answer-tokens", type=int, default=384)
    parser.add_argument("--matrix", type=int, default=MATRIX, help="side of the matrices of the rate")
    given = parser.parse_args()
    update_step.PROMPTS, update_step.GROUP, update_step.PEAKEDNESS = given.prompts, 4, 10.0
    update_step.PROMPT_TOKENS, update_step.ANSWER_TOKENS = 128, given.answer_tokens
    measure(given.layers, given.rounds, given.matrix, given.lora, given.recompute)


if __name__ == "__main__":
    main()
