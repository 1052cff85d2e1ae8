"""Following a job from the terminal: its event stream as curves that grow, above a progress bar; as lines in a pipe."""

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from service.cli.curves import sparkline
from service.cli.failure import CommandError
from service.contracts.flatten import flatten

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

SHOWN = {
    "reward": "train_mean_reward",
    "validation reward": "full_valid_mean_reward",
    "loss": "train_loss",
    "validation loss": "full_valid_loss",
    "KL": "troll.kl_after",
    "entropy": "troll.entropy",
    "tokens of an answer": "completion_tokens_mean",
    "seconds of a step": "timing.step.full_iteration",
}
"""What is drawn, and where metrics have it."""
OF_SET = re.compile(r"validation_sets\.([^.]+)\.mean_at_k")
"""The mean reward of a validation set, drawn under the set's name."""
BESIDE = 58
"""Columns of the terminal for what stands beside a curve."""
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
    """Show the job's progress until it ends. Returns it as it ended. Metrics become curves, messages go above them."""
    bar, lines = _bar(console), Lines()
    task = bar.add_task("waiting for a worker", total=None)
    # In a pipe what would be drawn anew comes once, at the end: there are lines instead.
    shown = Live(console=console, auto_refresh=console.is_terminal, transient=not console.is_terminal)
    with shown as live:
        for event in events(client, job_id):
            data = event["data"] or {}
            if event["type"] == "metrics":
                lines.take(data)
                bar.update(task, description="training", completed=data["step"], total=data["total_steps"])
                if not console.is_terminal and _is_worth_a_line(data):
                    console.print(event["message"], soft_wrap=True, highlight=False, markup=False)
            else:
                style = {"warn": "yellow", "error": "red"}.get(event["level"])
                console.print(event["message"], style=style, soft_wrap=True, highlight=False, markup=False)
            if console.is_terminal:
                live.update(Group(lines.table(console.width), bar.get_renderable()))
    return client.fine_tuning.jobs.retrieve(job_id)


class Lines:
    """The numbers that steps had so far, each a line of blocks between its least and its greatest."""

    def __init__(self) -> None:
        self._kept: dict[str, list[float]] = {}

    def take(self, data: dict[str, Any]) -> None:
        """Take a step's metrics."""
        numbers = flatten(data)
        of_sets = {
            name.split(".")[1]: name for name in numbers if re.fullmatch(r"validation_sets\.[^.]+\.mean_at_k", name)
        }
        for title, name in {**SHOWN, **of_sets}.items():
            if name in numbers:
                self._kept.setdefault(title, []).append(numbers[name])

    def table(self, width: int) -> Table:
        """Name, curve, newest number and bounds of what the job measures."""
        table = Table(box=None, show_header=False, padding=(0, 1))
        titles = [*filter(self._kept.__contains__, SHOWN), *(title for title in self._kept if title not in SHOWN)]
        for title, values in ((title, self._kept[title]) for title in titles):
            curve = sparkline(values, max(10, width - BESIDE))
            bounds = f"{min(values):.3g} to {max(values):.3g}"
            table.add_row(title, Text(curve, "cyan"), f"{values[-1]:.4g}", Text(bounds, "dim"))
        return table


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
        TimeRemainingColumn(),
        console=console,
    )
