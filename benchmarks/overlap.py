"""What grading while sampling and sampling ahead are worth where the grader takes its time.

    python -m benchmarks.overlap [--steps 8]

The tiny Qwen3 of `benchmarks.training_step` with random weights, 64 prompts of 4 answers of up to 100 tokens, and a
scoring service on this machine that thinks for 0.15 s about each request of at most 64 answers. Every way runs in a
process of its own, one after the other, twice; the first steps are not counted. "One after the other" is the same code
with an engine that hands everything over at once.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks import report
from benchmarks.training_step import save_model
from service.cli import demo as client
from service.graders.schemas import parse_grader
from service.graders.settings import GraderSettings, ScoringService
from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from service.jobs.methods.reinforcement import Reinforcement
from service.jobs.spec import JobSpec, RunSpec

PROMPTS, GROUP, UPDATES, MAX_TOKENS, WARM_UP, SECONDS = 64, 4, 8, 100, 2, 0.15
WAYS = {"one after the other": 0, "grading while sampling": 0, "sampling one step ahead": 1}
SERIAL = "one after the other"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--serial", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serial:
        train_serially(arguments.serial)
        return
    runs: dict[str, list[list[dict[str, float]]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="troll-bench-") as name, scoring_service() as url:
        folder = Path(name)
        save_model(folder / "base")
        client.write_rows(folder)
        (folder / "secret").write_text("whsec_c2VjcmV0")
        for number in range(2):
            for way in WAYS:
                runs[way].append(run(folder, way, url, arguments.steps, number))
    tell(runs, arguments.steps)


@contextlib.contextmanager
def scoring_service() -> Iterator[str]:
    """The URL of a service that rewards short answers, after a while."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["samples"]
            time.sleep(SECONDS)
            body = json.dumps({"rewards": [1 / (1 + len(each["sample"]["output_text"])) for each in asked]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/score"
    server.shutdown()


def run(folder: Path, way: str, url: str, steps: int, number: int) -> list[dict[str, float]]:
    """The seconds of each counted step, by phase."""
    asked = Hyperparameters(
        batch_size=PROMPTS,
        group_size=GROUP,
        mini_batches=UPDATES,
        max_completion_tokens=MAX_TOKENS,
        learning_rate=1e-6,
        n_steps=steps + WARM_UP,
        eval_interval=steps + WARM_UP,
        max_staleness=WAYS[way],
    )
    service = ScoringService(url.removesuffix("/score"), folder / "secret", private_network=True)
    spec = RunSpec(
        job_id="ftjob-bench",
        attempt=1,
        job=JobSpec(
            model="base",
            training_file="file-1",
            validation_file="file-2",
            method=Reinforcement(
                grader=parse_grader({"type": "http", "name": "slow", "url": url}, "grader"),
                hyperparameters=resolve(asked, training_rows=1000),
            ),
            seed=1,
        ),
        model_path=folder / "base",
        training_path=folder / "additions.jsonl",
        validation_path=folder / "held-out.jsonl",
        checkpoints=[],
        output_dir=folder / f"out-{way}-{number}".replace(" ", "-"),
        graders=GraderSettings(scoring_services=(service,)),
    )
    path = folder / "run.json"
    path.write_text(spec.model_dump_json())
    child = ["benchmarks.overlap", "--serial"] if way == SERIAL else ["workers.training", "--run"]
    # A training child sets this before it imports torch, which the serial one has imported by then.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", *child, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    events = [json.loads(line) for line in done.stdout.splitlines() if '"type":"metrics"' in line]
    # The last step evaluates as well.
    return [event["data"]["timing"]["step"] for event in events if WARM_UP < event["data"]["step"] < steps + WARM_UP]


def train_serially(path: Path) -> None:
    """A training child whose engine hands over all groups once the last is complete."""
    from workers.rollouts.transformers import TransformersEngine
    from workers.training import __main__ as training

    stream = TransformersEngine.stream
    TransformersEngine.stream = lambda *asked: (group for group in list(stream(*asked)))  # type: ignore[method-assign]
    raise SystemExit(training.main(["--run", str(path)]))


def tell(runs: dict[str, list[list[dict[str, float]]]], steps: int) -> None:
    best = {way: min((s for run in runs[way] for s in run), key=lambda step: step["full_iteration"]) for way in WAYS}
    rows = []
    for way, step in best.items():
        seconds = step["full_iteration"]
        split = [f"{step[work]:.2f} + {step.get(f'{work}_hidden', 0.0):.2f}" for work in ("sampling", "grading")]
        ratio = best[SERIAL]["full_iteration"] / seconds
        rows.append([way, f"{1 / seconds:.2f}", f"{ratio:.2f}", *split, f"{step['training']:.2f}"])
    columns = ["way", "steps per second", "ratio", "sampling, s waited + hidden", "grading, s", "training, s"]
    setting = (
        f"`python -m benchmarks.overlap`: {PROMPTS * GROUP} samples of up to {MAX_TOKENS} tokens and {UPDATES} updates "
        f"a step, the best of 2 runs of {steps} steps; a scoring service that takes {SECONDS} s for up to 64 answers. "
        f"{report.machine(('torch', 'transformers'))}."
    )
    remark = (
        "Within a step no more of the grading can be hidden than sampling takes. Sampling and training compute on the "
        "same two cores: sampling ahead hides the grader, not the computing. Where sampling has a processor of its own, "
        "it is hidden too."
    )
    body = f"{setting}\n\n{report.table(columns, rows)}\n\n{remark}"
    report.write_section("overlap", "Grading while sampling, sampling ahead", body)


if __name__ == "__main__":
    main()
