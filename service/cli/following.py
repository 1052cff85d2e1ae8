"""Following a job from the terminal: its event stream as a progress bar with the reward of the moment."""

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
        task = bar.add_task("waiting for a worker", total=None, reward="–", kl="–")
        for event in events(client, job_id):
            data = event["data"] or {}
            if event["type"] == "metrics":
                bar.update(task, **_state(data))
                if not console.is_terminal and _is_worth_a_line(data):
                    console.print(event["message"], soft_wrap=True, highlight=False, markup=False)
            else:
                style = {"warn": "yellow", "error": "red"}.get(event["level"])
                console.print(event["message"], style=style, soft_wrap=True, highlight=False, markup=False)
    return client.fine_tuning.jobs.retrieve(job_id)


def _is_worth_a_line(data: dict[str, Any]) -> bool:
    """A log gets every tenth step and every evaluation; a terminal's bar gets them all."""
    return data["step"] % 10 == 0 or data.get("full_valid_mean_reward") is not None


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("reward {task.fields[reward]}  KL {task.fields[kl]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _state(data: dict[str, Any]) -> dict[str, Any]:
    """What the bar shows after a metrics event. Numbers that a step does not have keep their last value."""
    state: dict[str, Any] = {"description": "training", "completed": data["step"], "total": data["total_steps"]}
    rewards = [data.get("train_mean_reward"), data.get("full_valid_mean_reward")]
    known = [reward for reward in rewards if reward is not None]
    if known:
        state["reward"] = f"{known[0]:.3f}"
    if (kl := (data.get("troll") or {}).get("kl_after")) is not None:
        state["kl"] = f"{kl:.4f}"
    return state
