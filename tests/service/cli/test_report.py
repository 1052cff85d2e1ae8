"""A job's report: one file that needs nothing else, and runs nothing that users wrote."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from service.cli.curves import CHARTS, Curves
from service.cli.drawing import drawn
from service.cli.report import Told, page

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
EVIL = "</pre></style><script>alert(1)</script><img src=//evil.example onerror='alert(2)'>\"&"


def evaluation(step: int, text: str = "12+34=") -> dict[str, Any]:
    return {
        "step": step,
        "train_mean_reward": None if step == 0 else 0.5,
        "full_valid_mean_reward": 0.2 + step / 50,
        "validation": {"reward_mean_low": 0.1, "reward_mean_high": 0.9, "pass_at_k": {"1": 0.5, "2": None}},
        "samples": [{"prompt": text, "answer": f"{text}46 at {step}", "reward": 1.0}],
    }


def told(text: str = "fine", **job: Any) -> Told:
    """What the service says of a job in which a user wrote ``text`` wherever they can write."""
    shown = {
        "id": "ftjob-1",
        "status": "succeeded",
        "model": f"tiny/{text}",
        "fine_tuned_model": f"ft:tiny:{text}",
        "user_provided_suffix": text,
        "training_file": "file-1",
        "validation_file": "file-2",
        "seed": 7,
        "trained_tokens": 12_345,
        "created_at": 1_700_000_000,
        "finished_at": 1_700_003_600,
        "error": {"message": text},
        "metadata": {text: text},
        "integrations": [{"type": "wandb", "wandb": {"project": text}}],
        "method": {"type": "reinforcement", "reinforcement": {"grader": {"name": text, "source": text}}},
        "progress": {"step": 30, "total_steps": 30, "attempt": 1, "gpu_seconds": 3700.0},
    } | job
    names = [name for chart in CHARTS for name in chart.lines]
    curves = Curves([float(n) for n in range(31)], {name: [n / 30 for n in range(31)] for name in names})
    messages = [{"level": text, "created_at": 1_700_000_000, "message": text}]
    checkpoints = [{"step_number": 30, "fine_tuned_model_checkpoint": f"ft:{text}:ckpt-step-30"}]
    return Told(shown, curves, [evaluation(step, text) for step in (0, 10, 20, 30)], messages, checkpoints)


class Tags(HTMLParser):
    """Which elements and attributes a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_nothing_that_a_user_wrote_becomes_markup() -> None:
    evil, fine = (Tags(page(told(text), NOW)).seen for text in (EVIL, "fine"))
    assert [tag for tag, _ in evil] == [tag for tag, _ in fine]
    assert [sorted(attributes) for _, attributes in evil] == [sorted(attributes) for _, attributes in fine]


def test_it_loads_and_runs_nothing() -> None:
    text = page(told(), NOW)
    tags = Tags(text).seen
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "iframe", "img", "object", "embed", "base"})
    assert not [name for _, attributes in tags for name in attributes if name in ("src", "href") or name[:2] == "on"]
    assert re.search(r"url\(|@import|https?://", text) is None
    assert "default-src 'none'" in text


def test_it_has_curves_results_samples_and_settings() -> None:
    text = page(told(), NOW)
    assert text.count("<figure>") == len(CHARTS)
    for shown in ("1 h 1 min", "46 at 0", "46 at 30", "0.100 to 0.900", "ft:fine:ckpt-step-30", "&quot;seed"):
        assert shown in text


@pytest.mark.parametrize(
    "job",
    [
        {"status": "queued", "finished_at": None, "fine_tuned_model": None, "error": None, "metadata": None},
        {"method": None, "integrations": [], "user_provided_suffix": None, "trained_tokens": None},
    ],
    ids=["queued", "unreadable"],
)
def test_a_job_with_nothing_to_show_yet_has_a_report(job: dict[str, Any]) -> None:
    names = [name for chart in CHARTS for name in chart.lines]
    bare = replace(told(**job), curves=Curves([], {name: [] for name in names}), evaluations=[], checkpoints=[])
    text = page(bare, NOW)
    assert "<figure>" not in text
    assert "ftjob-1" in text


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [5.0, 5.0], [-1e-9, 1e-9], [1e12, -3.0], [0.999, 1.0]])
def test_a_curve_lies_between_round_numbers(values: list[float]) -> None:
    figure = drawn("t", {"a": [(float(n), value) for n, value in enumerate(values)]})
    (points,) = re.findall(r"points='([^']*)'", figure)
    assert all(0 <= float(y) <= 220 for y in re.findall(r",(\S+)", points))
    ticks = [float(each) for each in re.findall(r"class='tick end' x='50.*?>([^<]*)<", figure)]
    assert len(ticks) >= 2
    assert ticks[0] <= min(values) + abs(min(values)) * 1e-3
    assert ticks[-1] >= max(values) - abs(max(values)) * 1e-3
