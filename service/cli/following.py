"""Following a job from the terminal: its event stream as a progress bar with the reward, or the loss, of the moment."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.cli.failure import CommandError

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

TERMINAL = ("succeeded", "failed", "cancelled")
SILENCE_SECONDS = 45.0
"""The service pings every ten seconds; a connection silent for longer than this is dead."""
GIVE_UP_SECONDS = 120.0


def events(client: "OpenAI", job_id: str, after: int = 0) -> Iterator[dict[str, Any]]:
    """Every event of the job, oldest first, each once, until the job has ended.

    A lost connection is made again from the last event on; after two minutes without one, ``CommandError``.
    """
    import openai

    last, alive = after, time.monotonic()
    while True:
        received = 0
        try:
            for event in _stream(client, job_id, last):
                last, received, alive = event["seq"], received + 1, time.monotonic()
                yield event
            # The client cannot tell the stream's end from a broken connection; a second look can.
            if received == 0 and client.fine_tuning.jobs.retrieve(job_id).status in TERMINAL:
                return
        except (openai.APIConnectionError, openai.InternalServerError, OSError) as error:
            if time.monotonic() - alive > GIVE_UP_SECONDS:
                raise CommandError(f"Lost the connection to {client.base_url} while following {job_id}.") from error
            time.sleep(1.0)


def _stream(client: "OpenAI", job_id: str, after: int) -> Iterator[dict[str, Any]]:
    import openai

    query = {"stream": "true", **({"after": str(after)} if after else {})}
    with client.get(
        f"/fine_tuning/jobs/{job_id}/events",
        cast_to=dict[str, Any],
        options={"params": query, "timeout": SILENCE_SECONDS},
        stream=True,
        stream_cls=openai.Stream[dict[str, Any]],
    ) as stream:
        yield from stream


def show(client: "OpenAI", job_id: str, console: Console) -> "FineTuningJob":
    """Show the job's progress until it ends. Returns it as it ended. Metrics become the bar, messages go above it."""
    with _bar(console) as bar:
        task = bar.add_task("waiting for a worker", total=None, numbers="")
        known: dict[str, str] = {}
        for event in events(client, job_id):
            data = event["data"] or {}
            if event["type"] == "metrics":
                known |= _numbers(data)
                shown = "  ".join(f"{name} {number}" for name, number in known.items())
                done = {"completed": data["step"], "total": data["total_steps"]}
                bar.update(task, description="training", numbers=shown, **done)
                if not console.is_terminal and _is_worth_a_line(data):
                    console.print(event["message"], soft_wrap=True, highlight=False, markup=False)
            else:
                style = {"warn": "yellow", "error": "red"}.get(event["level"])
                console.print(event["message"], style=style, soft_wrap=True, highlight=False, markup=False)
    return client.fine_tuning.jobs.retrieve(job_id)


def _is_worth_a_line(data: dict[str, Any]) -> bool:
    """A log gets every tenth step and every evaluation; a terminal's bar gets them all."""
    # What a method tells that only evaluates is about nothing else.
    evaluated = ("full_valid_mean_reward", "full_valid_loss", "reward_count")
    return data["step"] % 10 == 0 or any(data.get(name) is not None for name in evaluated)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _numbers(data: dict[str, Any]) -> dict[str, str]:
    """What the bar shows after a metrics event. Numbers that a step does not have keep their last value."""
    candidates = {
        "reward": ("train_mean_reward", "full_valid_mean_reward"),
        "loss": ("train_loss", "full_valid_loss"),
        "validation loss": ("full_valid_loss",),
    }
    if "reward_count" in data:
        figures = {name: found["mean_at_k"] for name, found in data["validation_sets"].items() if found is not None}
        return {name: f"{mean:.3f}" for name, mean in figures.items()}
    known = {name: [data[each] for each in names if data.get(each) is not None] for name, names in candidates.items()}
    numbers = {name: f"{values[0]:.3f}" for name, values in known.items() if values}
    if (kl := (data.get("troll") or {}).get("kl_after")) is not None:
        numbers["KL"] = f"{kl:.4f}"
    return numbers
