"""The reinforcement fine-tuning workflow of the hosted service, from upload to chat, with nothing but its client.

    troll up --demo-model --detach                  # prints OPENAI_BASE_URL and OPENAI_API_KEY for this script
    python examples/hosted_guide.py [--steps 40]

Nothing in here knows this service: change the base URL, the model and the grader, and it runs elsewhere.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from openai import OpenAI

HERE = Path(__file__).parent
GRADER: Any = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
ENDED = ("succeeded", "failed", "cancelled")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="troll-demo/additions")
    parser.add_argument("--training", type=Path, default=HERE / "additions-train.jsonl")
    parser.add_argument("--validation", type=Path, default=HERE / "additions-valid.jsonl")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    client = OpenAI()

    # 1. Upload the rows.
    training, validation = (
        client.files.create(file=path, purpose="fine-tune").id for path in (given.training, given.validation)
    )
    row = json.loads(given.training.read_text().splitlines()[0])

    # 2. Check the grader, and try it on a right answer and on a wrong one.
    graders = client.fine_tuning.alpha.graders
    graders.validate(grader=GRADER)
    for answer in (row["answer"], "no idea"):
        ran = graders.run(grader=GRADER, model_sample=answer, item=row)
        print(f"The grader gives {ran.reward} to {answer!r}")

    # 3. Create the job.
    hyperparameters: Any = {
        "n_epochs": 1,
        "batch_size": 32,
        "eval_interval": max(1, given.steps // 4),
        # This service's own, which a client passes on untouched.
        "learning_rate": 1e-4,
        "n_steps": given.steps,
        "max_completion_tokens": 8,
    }
    job = client.fine_tuning.jobs.create(
        model=given.model,
        training_file=training,
        validation_file=validation,
        seed=3,
        suffix="guide",
        method={"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": hyperparameters}},
    )
    print(f"Created {job.id}")

    # 4. Follow it.
    follow(client, job.id)
    job = client.fine_tuning.jobs.retrieve(job.id)
    if job.status != "succeeded":
        raise SystemExit(f"{job.id} {job.status}: {job.error}")

    # 5. Choose the checkpoint with the best reward on the validation rows.
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    best = max(checkpoints, key=lambda each: (each.metrics.model_extra or {})["valid_reward_mean"])
    for each in checkpoints:
        reward = (each.metrics.model_extra or {})["valid_reward_mean"]
        print(f"{'*' if each is best else ' '} step {each.step_number}: validation reward {reward:.3f}")

    # 6. Talk to it.
    said = client.responses.create(
        model=best.fine_tuned_model_checkpoint, input=row["messages"], temperature=0, max_output_tokens=16
    )
    print(f"{row['messages'][-1]['content']} {said.output_text}")


def follow(client: OpenAI, job_id: str) -> None:
    """Print a job's events, oldest first, until it has ended. Lists of events are newest first."""
    shown: set[str] = set()
    while True:
        ended = client.fine_tuning.jobs.retrieve(job_id).status in ENDED
        new = []
        for event in client.fine_tuning.jobs.list_events(job_id, limit=50):
            if event.id in shown:
                break
            new.append(event)
        for event in reversed(new):
            shown.add(event.id)
            print(f"[{event.level}] {event.message}")
        if ended:
            return
        time.sleep(1)


if __name__ == "__main__":
    main()
