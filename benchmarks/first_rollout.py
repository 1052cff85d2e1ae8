"""How long a job waits between ``POST`` and its first rollout, when a worker is free.

The whole stack runs as a user starts it. The clock starts before the request is sent and stops when the event
"Training started" arrives on the live stream; sampling begins right then. The time that the child says it spent on
loading model and data, which depends on the model alone, is taken off.

    python benchmarks/first_rollout.py [--jobs 5]
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

from openai import OpenAI, Stream
from openai.types.fine_tuning import FineTuningJobEvent

from benchmarks.stack import running_stack
from service.cli import demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5)
    jobs = parser.parse_args().jobs
    with running_stack() as (folder, stack):
        client = OpenAI(base_url=stack["base_url"], api_key=stack["api_key"])
        waits = measure(client, stack["model"], folder, jobs)
    print(f"{platform.processor() or platform.machine()}, {jobs} jobs, one after another, warm worker")
    for label, values in waits.items():
        print(f"  {label:34} median {statistics.median(values):.2f} s, from {min(values):.2f} to {max(values):.2f} s")
    print(json.dumps({label: round(statistics.median(values), 3) for label, values in waits.items()}))


def measure(client: OpenAI, model: str, folder: Path, jobs: int) -> dict[str, list[float]]:
    training, held_out = demo.write_rows(folder)
    files = [client.files.create(file=path, purpose="fine-tune").id for path in (training, held_out)]
    waits: dict[str, list[float]] = {"POST to first rollout": [], "of it loading": [], "loading excluded": []}
    for _ in range(jobs):
        began = time.monotonic()
        job = client.fine_tuning.jobs.create(
            model=model,
            training_file=files[0],
            validation_file=files[1],
            method={
                "type": "reinforcement",
                "reinforcement": {
                    "grader": demo.GRADER,
                    "hyperparameters": demo.HYPERPARAMETERS | {"n_steps": 1},  # type: ignore[typeddict-item]
                },
            },
        )
        loading = started(client, job.id)
        total = time.monotonic() - began
        for label, value in zip(waits, (total, loading, total - loading), strict=True):
            waits[label].append(value)
        wait_for_end(client, job.id)
    return waits


def started(client: OpenAI, job_id: str) -> float:
    """Wait for the event that training started. Returns the seconds that loading took."""
    stream = client.get(
        f"/fine_tuning/jobs/{job_id}/events",
        cast_to=FineTuningJobEvent,
        stream=True,
        stream_cls=Stream[FineTuningJobEvent],
        options={"params": {"stream": "true"}},
    )
    with stream:
        for event in stream:
            if event.message == "Training started":
                assert isinstance(event.data, dict)
                return float(event.data["loading_seconds"])
    raise RuntimeError(f"{job_id} ended before it started")


def wait_for_end(client: OpenAI, job_id: str) -> None:
    """Wait until the job has ended and its worker has a warm child again."""
    while client.fine_tuning.jobs.retrieve(job_id).status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.2)
    time.sleep(10)


if __name__ == "__main__":
    main()
