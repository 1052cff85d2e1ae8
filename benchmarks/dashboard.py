"""The dashboard with long runs: how soon its pages can be used, how smoothly curves move, and how much they are sent.

    python -m benchmarks.dashboard [--steps 10000] [--loads 5]

The stack runs as a user starts it, and Chromium without a window and without a GPU on the same cores. A job's page, and
one that compares eight jobs, are held against the same of runs of 100 steps. Needs Chromium and the extra ``dev``.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import psycopg
from playwright.sync_api import Page, sync_playwright

from benchmarks import report
from benchmarks.api import Tenant, prepared
from benchmarks.polls import point_at, tell
from benchmarks.stack import running_stack

FEW = 100
COMPARED = 8
LIVE_STEPS = 20
SECONDS_MOVING = 3.0
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]

# When the first chart has a curve of every run, and the browser has come to draw two frames after it.
WATCH = """
window.usableAt = new Promise((tell) => {
  const look = () => {
    const drawn = document.querySelector(".u-over")?.closest("figure").ariaLabel.split(" at the end: ")[1].split(", ").length ?? 0;
    if (drawn >= %d) requestAnimationFrame(() => requestAnimationFrame(() => tell(performance.now())));
    else requestAnimationFrame(look);
  };
  look();
});
"""
# Moves the first chart in every frame, as a hand does, and tells when each frame was.
MOVE = """
async ([how, seconds]) => {
  const over = document.querySelector(".u-over"), box = over.getBoundingClientRect(), frames = [];
  const mouse = (type, x, more) =>
    new MouseEvent(type, { bubbles: true, button: 0, clientX: box.left + x, clientY: box.top + 50, ...more });
  if (how === "pan") over.dispatchEvent(mouse("mousedown", box.width / 2, { shiftKey: true }));
  const end = performance.now() + 1000 * seconds;
  await new Promise((done) => {
    const next = (now) => {
      frames.push(now);
      const swing = Math.sin(frames.length / 20);
      if (how === "pan") document.dispatchEvent(mouse("mousemove", box.width * (0.5 + 0.4 * swing), { shiftKey: true }));
      else over.dispatchEvent(new WheelEvent("wheel", {
        bubbles: true, cancelable: true, ctrlKey: true, clientX: box.left + box.width / 2, deltaY: 12 * Math.cos(frames.length / 20),
      }));
      now < end ? requestAnimationFrame(next) : done();
    };
    requestAnimationFrame(next);
  });
  if (how === "pan") document.dispatchEvent(mouse("mouseup", box.width / 2));
  return frames;
}
"""


@dataclass
class Measured:
    """Of one page."""

    seconds: float
    """Until it can be used: the median of several loads, each with an empty cache."""
    api_bytes: int
    """That the API sent for it."""
    frames: dict[str, tuple[float, float]]
    """By how the curves are moved: frames a second, and the longest of the shortest 95 %, in ms."""


def fill(owner_url: str, template: str, steps: int) -> list[str]:
    """``COMPARED`` ended copies of a job, with metrics of so many steps."""
    ids = [f"ftjob-bench-{steps}-{n}" for n in range(COMPARED)]
    with psycopg.connect(owner_url, autocommit=True) as connection:
        columns = connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'fine_tuning_jobs' AND is_identity = 'NO' "
            "AND is_generated = 'NEVER' "
            "AND column_name NOT IN ('id', 'status', 'event_count', 'finished_at', 'step', 'total_steps')"
        ).fetchall()
        same = ", ".join(f'"{name}"' for (name,) in columns)
        for id in ids:
            connection.execute(
                f"INSERT INTO fine_tuning_jobs (id, status, event_count, finished_at, step, total_steps, {same}) "
                f"SELECT %s, 'succeeded', %s, now(), %s, %s, {same} FROM fine_tuning_jobs WHERE id = %s",
                [id, steps, steps, steps, template],
            )
            connection.execute(_EVENTS, {"id": id, "template": template, "steps": steps, "every": max(1, steps // 100)})
        connection.execute("ANALYZE")
    return ids


_EVENTS = """
    INSERT INTO fine_tuning_events (job_id, seq, organization_id, level, type, message, data, created_at)
    SELECT %(id)s, n, organization_id, 'info', 'metrics', 'Step ' || n, data || jsonb_build_object(
        'step', n, 'train_mean_reward', 0.5 + 0.4 * sin(n / 900.0) + 0.1 * random(),
        'full_valid_mean_reward', CASE WHEN n %% %(every)s = 0 THEN 0.5 + 0.1 * random() END,
        'samples', CASE WHEN n %% %(every)s = 0 THEN data->'samples' ELSE '[]' END,
        'completion_tokens_mean', 3 + random(),
        'troll', (data->'troll') || jsonb_build_object(
            'entropy', random(), 'kl_before', random(), 'grad_norm', random(), 'ratio', random())
        ), now() - (%(steps)s - n) * interval '1 s'
    FROM (
        SELECT organization_id, data FROM fine_tuning_events
        WHERE job_id = %(template)s AND type = 'metrics' ORDER BY seq DESC LIMIT 1
    ) one, generate_series(1, %(steps)s) n
"""


def fold(ids: list[str], steps: int) -> None:
    """What a job's worker does as it tells its steps."""
    from service.core.db import transaction
    from service.jobs import folding, repository

    for id in ids:
        for _ in range(0, steps, folding.AT_ONCE * folding.FINE):
            with transaction("troll_worker") as session:
                job = repository.locked(session, id)
                assert job is not None
                folding.fold(session, job)


@contextmanager
def opened(origin: str, key: str) -> Iterator[Callable[..., tuple[Page, float, int]]]:
    """``load(path, runs)`` opens a page in a new window: it, seconds until it can be used, and bytes of the API.

    The page of a job that ``is_followed`` never stops to be sent something.
    """
    chromium = next(
        found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)

        def load(path: str, runs: int, *, is_followed: bool = False) -> tuple[Page, float, int]:
            context = browser.new_context(base_url=origin, viewport={"width": 1280, "height": 900})
            context.add_cookies([{"name": "troll_session", "value": key, "url": origin}])
            page, sent = context.new_page(), [0]
            page.on("response", lambda answer: sent.append(_size(answer)))
            page.add_init_script(WATCH % runs)
            page.goto(f"/#/{path}", wait_until="commit")
            milliseconds: float = page.evaluate("usableAt")
            if not is_followed:
                page.wait_for_load_state("networkidle")
            return page, milliseconds / 1000, sum(sent)

        yield load
        browser.close()


def _size(answer: Any) -> int:
    if "/v1/" not in answer.url or "stream=true" in answer.url:
        return 0
    return len(answer.body())


def measured(load: Callable[..., tuple[Page, float, int]], path: str, runs: int, loads: int) -> Measured:
    seconds, frames, sent = [], {}, 0
    for number in range(loads):
        page, took, sent = load(path, runs)
        seconds.append(took)
        if number == loads - 1:
            for how in ("zoom", "pan"):
                # There is something to move to where not all is shown.
                page.get_by_role("button", name="Zoom in").click()
                page.wait_for_timeout(500)
                frames[how] = _rate(page.evaluate(MOVE, [how, SECONDS_MOVING]))
        page.context.close()
    return Measured(statistics.median(seconds), sent, frames)


def _rate(frames: list[float]) -> tuple[float, float]:
    gaps = sorted(after - before for before, after in pairwise(frames))
    return 1000 * len(gaps) / sum(gaps), gaps[int(0.95 * len(gaps))]


def live(load: Callable[..., tuple[Page, float, int]], job: str) -> list[float]:
    """Seconds from when a worker's event is committed to when the page shows it."""
    page, _, _ = load(f"job/{job}", 1, is_followed=True)
    page.wait_for_timeout(1000)
    delays = []
    for step in range(50, 50 + LIVE_STEPS):
        there = tell(job, step, train_mean_reward=0.5)
        page.wait_for_function("step => document.querySelector('.facts').innerText.includes(` ${step}/`)", arg=step)
        delays.append(time.perf_counter() - there)
    page.context.close()
    return delays


def written(few: dict[str, Measured], many: dict[str, Measured], delays: list[float], steps: int) -> str:
    rows = []

    def add(name: str, before: float, after: float, shown: str, unit: str) -> None:
        rows.append([name, f"{before:{shown}} {unit}", f"{after:{shown}} {unit}", f"{after / before:.2f}"])

    for kind, title in (("job", "a job's page"), ("compare", f"{COMPARED} jobs compared")):
        one, other = few[kind], many[kind]
        add(f"{title}: until it can be used", one.seconds, other.seconds, ".2f", "s")
        add(f"{title}: sent by the API", one.api_bytes / 1000, other.api_bytes / 1000, ".0f", "kB")
        for how, doing in (("zoom", "zooming"), ("pan", "moving")):
            add(f"{title}: frames a second while {doing}", one.frames[how][0], other.frames[how][0], ".0f", "")
            add(f"{title}: 95 % of these frames take at most", one.frames[how][1], other.frames[how][1], ".0f", "ms")
    table = report.table(["", f"{FEW} steps", f"{steps:,} steps", "ratio"], rows)
    shown = f"median {statistics.median(delays):.2f} s, slowest {max(delays):.2f} s"
    return f"{table}\n\nA step is on the page after its worker has committed it: {shown} of {len(delays)}."


def job_with_events(tenant: Tenant) -> tuple[str, str]:
    """A job that has ended, whose events the others' are made of, and one that waits to be told of."""
    template = json.loads(asyncio.run(tenant.create()).body)["id"]
    while json.loads(asyncio.run(tenant.get(f"/v1/fine_tuning/jobs/{template}")).body)["status"] != "succeeded":
        time.sleep(0.5)
    waiting = json.loads(asyncio.run(tenant.create()).body)["id"]
    asyncio.run(tenant.send("POST", f"/v1/fine_tuning/jobs/{waiting}/pause"))
    while json.loads(asyncio.run(tenant.get(f"/v1/fine_tuning/jobs/{waiting}")).body)["status"] != "paused":
        time.sleep(0.2)
    return template, waiting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--loads", type=int, default=5)
    given = parser.parse_args()
    os.environ["TROLL_REQUESTS_PER_MINUTE"] = "0"
    busy = os.getloadavg()[0]
    with running_stack() as (folder, stack):
        tenant = Tenant.of(stack)
        owner_url = point_at(folder)
        asyncio.run(prepared(tenant, stack["model"]))
        template, waiting = job_with_events(tenant)
        found: dict[int, dict[str, Measured]] = {}
        with opened(stack["base_url"].removesuffix("/v1"), stack["api_key"]) as load:
            for steps in (FEW, given.steps):
                ids = fill(owner_url, template, steps)
                fold(ids, steps)
                pages = {"job": (f"job/{ids[0]}", 1), "compare": (f"compare/{'/'.join(ids)}", COMPARED)}
                found[steps] = {kind: measured(load, *page, given.loads) for kind, page in pages.items()}
                print(steps, found[steps], flush=True)
            for step in range(1, 50):
                tell(waiting, step, train_mean_reward=0.5)
            delays = live(load, waiting)
    about = (
        f"`python -m benchmarks.dashboard`: Chromium without a GPU, 1280 by 900, on the cores that serve it; the median of "
        f"{given.loads} loads with an empty cache. The load of the machine before it began: {busy:.1f}. {report.machine(('fastapi', 'playwright'))}."
    )
    body = written(found[FEW], found[given.steps], delays, given.steps)
    report.write_section("dashboard", "The dashboard with long runs", f"{about}\n\n{body}")


if __name__ == "__main__":
    main()
