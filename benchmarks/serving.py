"""Requests per second and time to the first token of the demo model, streamed through the whole stack.

    python -m benchmarks.serving [--seconds 10]

The stack runs as a user starts it; the client is one process with that many requests open at a time, each for 64 tokens
that the model is not allowed to end early. The first request of all, which loads the model, is told apart.
"""

import argparse
import asyncio
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI

from benchmarks import report
from benchmarks.stack import running_stack
from workers.demo import make_tokenizer

MODULE = "benchmarks.serving"
CONCURRENCIES = (1, 8, 32)
TOKENS = 64
NEVER_ENDING = {str(make_tokenizer().eos_token_id): -100}


@dataclass(frozen=True)
class Streamed:
    """When things came, in seconds since the request was sent."""

    first: float
    last: float


async def stream(client: AsyncOpenAI, model: str, number: int) -> Streamed:
    began, first = time.perf_counter(), None
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": f"{10 + number % 90}+{10 + number % 83}="}],
        "max_completion_tokens": TOKENS,
        "logit_bias": NEVER_ENDING,
    }
    async for chunk in await client.chat.completions.create(model=model, stream=True, **asked):
        if first is None and chunk.choices[0].delta.content:
            first = time.perf_counter() - began
    assert first is not None
    return Streamed(first, time.perf_counter() - began)


async def measure(client: AsyncOpenAI, model: str, concurrency: int, seconds: float) -> tuple[list[Streamed], float]:
    """Every stream that ended within about `seconds`, and the seconds it really took."""
    began, done = time.perf_counter(), []

    async def one_after_another(number: int) -> None:
        while time.perf_counter() - began < seconds:
            done.append(await stream(client, model, number + len(done)))

    await asyncio.gather(*(one_after_another(number) for number in range(concurrency)))
    return done, time.perf_counter() - began


async def run(base_url: str, api_key: str, model: str, seconds: float) -> tuple[float, dict[int, Any]]:
    async with AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=120) as client:
        cold = await stream(client, model, 0)
        await measure(client, model, 1, 1.0)
        return cold.first, {many: await measure(client, model, many, seconds) for many in CONCURRENCIES}


def row(many: int, streams: list[Streamed], seconds: float) -> list[str]:
    firsts = sorted(1000 * each.first for each in streams)
    return [
        str(many),
        f"{len(streams) / seconds:.1f}",
        f"{TOKENS * len(streams) / seconds:,.0f}",
        f"{statistics.median(firsts):.0f} ms",
        f"{firsts[int(0.95 * len(firsts))]:.0f} ms",
        f"{1000 * statistics.median((each.last - each.first) / (TOKENS - 1) for each in streams):.1f} ms",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    seconds = parser.parse_args().seconds
    os.environ["TROLL_REQUESTS_PER_MINUTE"] = "0"
    with running_stack() as (_, stack):
        cold, results = asyncio.run(run(stack["base_url"], stack["api_key"], stack["model"], seconds))
    table = report.table(
        ["requests at a time", "requests per second", "tokens per second", "first token", "95th percentile", "a token"],
        [row(many, *result) for many, result in results.items()],
    )
    setting = (
        f"`python -m benchmarks.serving`: chats of {TOKENS} tokens, streamed by the official client for {seconds:.0f} "
        f"seconds each, client and stack on the same cores; medians. {report.machine(('torch', 'transformers', 'redis'))}. "
        f"The very first request, which starts the model's process, had its first token after {cold:.1f} s."
    )
    report.write_section("serving", "Serving the demo model", f"{setting}\n\n{table}")


if __name__ == "__main__":
    main()
