"""``troll report``: one job on one page, which needs nothing else to be read."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import curves
from service.cli.connection import StackFolder, connect
from service.cli.curves import CHARTS, Chart, Curves
from service.cli.drawing import drawn
from service.contracts.flatten import flatten

if TYPE_CHECKING:
    from openai import OpenAI

MOST_SAMPLES = 8
"""Prompts of which answers are shown."""
TIMES = 4
"""Steps from which they are shown."""
STYLE = (Path(__file__).parent / "report.css").read_text()


@dataclass(frozen=True)
class Told:
    """What the service says of a job."""

    job: dict[str, Any]
    curves: Curves
    evaluations: list[dict[str, Any]]
    """Data of the metrics events of steps that were evaluated, oldest first."""
    messages: list[dict[str, Any]]
    checkpoints: list[dict[str, Any]]


def report(
    job_id: str,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file. Default: named after the job.")
    ] = None,
    data_dir: StackFolder = None,
) -> None:
    """Write a job's curves, results, settings and samples into one HTML file that needs no network."""
    told = _told(connect(data_dir), job_id)
    path = output or Path(f"{job_id}.html")
    path.write_text(page(told, datetime.now(UTC)), encoding="utf-8")
    typer.echo(str(path))


def _told(client: "OpenAI", job_id: str) -> Told:
    job = client.fine_tuning.jobs.retrieve(job_id).to_dict()
    names = list(dict.fromkeys(name for chart in CHARTS for name in chart.lines))
    evaluations, messages = [], []
    for event in client.fine_tuning.jobs.list_events(job_id, limit=1000):
        data: Any = event.data
        if event.type == "message":
            messages.append(event.to_dict())
        elif isinstance(data, dict) and _evaluated(data):
            evaluations.append(data)
    checkpoints = [each.to_dict() for each in client.fine_tuning.jobs.checkpoints.list(job_id, limit=1000)]
    return Told(job, curves.read(client, job_id, names, 400), evaluations[::-1], messages[::-1], checkpoints)


def _evaluated(data: dict[str, Any]) -> bool:
    return any(data.get(name) is not None for name in ("full_valid_mean_reward", "full_valid_loss"))


def page(told: Told, now: datetime) -> str:
    """The whole file. Whatever users may have written is escaped, and no script runs in it."""
    job = told.job
    title = f"{job['id']} · {job['status']}"
    parts = [
        f"<header><h1>{_text(job['id'])}</h1>"
        f"<p class='status {_text(job['status'])}'>{_text(job['status'])}</p></header>",
        _section("Summary", _facts(told)),
        _section("Curves", "".join(_chart(each, told.curves) for each in CHARTS), "charts"),
        _section("Evaluations", _evaluations(told)),
        _section("Samples", _samples(told.evaluations)),
        _section("Settings as submitted", _settings(job)),
        _section("Events", _events(told.messages)),
        f"<footer>Written {now:%Y-%m-%d %H:%M} UTC. Opens without network; no script runs in it.</footer>",
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        # Were something to slip through, browsers would not load or run it.
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _text(value: Any) -> str:
    """Anything as text in an element or an attribute."""
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), quote=True)


def _section(title: str, content: str, kind: str = "") -> str:
    return f"<section><h2>{title}</h2><div class='{kind}'>{content}</div></section>" if content else ""


def _facts(told: Told) -> str:
    job, progress = told.job, told.job["progress"]
    facts = {
        "model": job["model"],
        "tuned model": job["fine_tuned_model"],
        "suffix": job["user_provided_suffix"],
        "steps": f"{progress['step']} of {progress['total_steps']}",
        "attempts": progress["attempt"],
        "GPU time": _seconds(progress["gpu_seconds"]),
        "tokens learned from": job["trained_tokens"],
        "created": _time(job["created_at"]),
        "finished": _time(job["finished_at"]) if job["finished_at"] else None,
        "error": job["error"]["message"] if job["error"] else None,
        **{f"metadata: {name}": value for name, value in (job["metadata"] or {}).items()},
    }
    listed = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items() if value)
    return f"{_headline(told.evaluations)}<dl>{listed}</dl>"


def _headline(evaluations: list[dict[str, Any]]) -> str:
    """The first, the best and the last evaluation, large."""
    rewards = [(each["step"], each["full_valid_mean_reward"]) for each in evaluations if "train_mean_reward" in each]
    losses = [(each["step"], each["full_valid_loss"]) for each in evaluations if "train_loss" in each]
    what, points, better = ("reward", rewards, max) if rewards else ("loss", losses, min)
    if not points:
        return ""
    shown = {"before": points[0], "best": better(points, key=lambda point: point[1]), "last": points[-1]}
    boxes = "".join(
        f"<div><span>validation {what}, {name}</span><b>{value:.4g}</b><span>step {step}</span></div>"
        for name, (step, value) in shown.items()
    )
    return f"<div class='headline'>{boxes}</div>"


def _chart(chart: Chart, found: Curves) -> str:
    lines = {called: points for name, called in chart.lines.items() if (points := found.points(name))}
    return drawn(chart.title, lines) if lines else ""


def _evaluations(told: Told) -> str:
    """A row for each evaluation, with the checkpoint that came of it."""
    kept = {each["step_number"]: each["fine_tuned_model_checkpoint"] for each in told.checkpoints}
    rows = []
    for data in told.evaluations:
        numbers = flatten(data)
        low, high = (numbers.get(f"validation.reward_mean_{end}") for end in ("low", "high"))
        passed = (data.get("validation") or {}).get("pass_at_k") or {}
        cells = {
            "step": data["step"],
            "validation reward": numbers.get("full_valid_mean_reward"),
            "95 % interval": None if low is None else f"{low:.3f} to {high:.3f}",
            "solved, by answers": "  ".join(f"{k}: {value:.3f}" for k, value in passed.items() if value is not None),
            "validation loss": numbers.get("full_valid_loss"),
            "accuracy of tokens": numbers.get("full_valid_mean_token_accuracy"),
            "tokens of an answer": numbers.get("valid_completion_tokens_mean"),
            "checkpoint": kept.get(data["step"]),
        }
        rows.append(cells)
    names = [name for name in (rows[0] if rows else {}) if any(row[name] not in (None, "") for row in rows)]
    return _table(names, [[row[name] for name in names] for row in rows]) if rows else ""


def _table(names: list[str], rows: list[list[Any]]) -> str:
    head = "".join(f"<th scope='col'>{_text(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<div class='wide' tabindex='0'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(value: Any) -> str:
    return "–" if value in (None, "") else f"{value:.4f}" if isinstance(value, float) else _text(value)


def _samples(evaluations: list[dict[str, Any]]) -> str:
    """Answers to the same prompts over time."""
    evaluations = [each for each in evaluations if each.get("samples")]
    if not evaluations:
        return ""
    last = len(evaluations) - 1
    chosen = [evaluations[n] for n in dict.fromkeys(round(last * part / (TIMES - 1)) for part in range(TIMES))]
    prompts = dict.fromkeys(sample["prompt"] for sample in evaluations[-1]["samples"])
    shown = []
    for prompt in list(prompts)[:MOST_SAMPLES]:
        answers = [
            f"<tr><td>{_text(data['step'])}</td><td>{_cell(sample.get('reward'))}</td>"
            f"<td><pre>{_text(sample['answer'])}</pre></td></tr>"
            for data in chosen
            for sample in data["samples"]
            if sample["prompt"] == prompt
        ]
        shown.append(
            f"<details open><summary><pre>{_text(prompt)}</pre></summary><div class='wide' tabindex='0'><table><thead>"
            "<tr><th scope='col'>step</th><th scope='col'>reward</th><th scope='col'>answer</th></tr></thead>"
            f"<tbody>{''.join(answers)}</tbody></table></div></details>"
        )
    return "".join(shown)


def _settings(job: dict[str, Any]) -> str:
    asked = {name: job[name] for name in ("training_file", "validation_file", "seed", "method", "integrations")}
    return f"<pre class='settings' tabindex='0'>{_text(json.dumps(asked, indent=2, ensure_ascii=False))}</pre>"


def _events(messages: list[dict[str, Any]]) -> str:
    lines = (
        f"<li class='{_text(each['level'])}'><time>{_time(each['created_at'])}</time> {_text(each['message'])}</li>"
        for each in messages
    )
    return f"<ol class='events'>{''.join(lines)}</ol>"


def _time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _seconds(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600} h {whole % 3600 // 60} min" if whole >= 3600 else f"{whole // 60} min {whole % 60} s"
