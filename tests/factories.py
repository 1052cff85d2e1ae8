"""What tests are made of: models, rows, files and jobs that are valid unless a test says otherwise."""

import json
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

GRADER = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}


def rows(count: int, start: int = 10) -> list[dict[str, Any]]:
    """Two-digit additions with their answers."""
    numbers = range(start, start + count)
    return [{"messages": [{"role": "user", "content": f"{n}+11="}], "answer": str(n + 11)} for n in numbers]


def jsonl(data: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in data).encode()


def offer_model(models_dir: Path, name: str = "tiny/base") -> str:
    """A folder that the operator's list accepts. Its weights are not real: for tests that never load them."""
    folder = models_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    (folder / "model.safetensors").write_bytes(b"\0" * 8)
    return name


def upload(client: TestClient, data: bytes, purpose: str = "fine-tune", filename: str = "rows.jsonl") -> str:
    answer = client.post("/v1/files", files={"file": (filename, data)}, data={"purpose": purpose})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def job_body(client: TestClient, model: str, **hyperparameters: Any) -> dict[str, Any]:
    """A valid body of ``POST /v1/fine_tuning/jobs`` with freshly uploaded files."""
    return {
        "model": model,
        "training_file": upload(client, jsonl(rows(8))),
        "validation_file": upload(client, jsonl(rows(4, start=50))),
        "method": method(**hyperparameters),
    }


def method(grader: dict[str, Any] = GRADER, **hyperparameters: Any) -> dict[str, Any]:
    return {
        "type": "reinforcement",
        "reinforcement": {"grader": dict(grader), "hyperparameters": hyperparameters},
    }


def answered_rows(count: int, start: int = 10) -> list[dict[str, Any]]:
    """Two-digit additions that the assistant has answered."""
    return [
        {"messages": [*row["messages"], {"role": "assistant", "content": row["answer"]}]} for row in rows(count, start)
    ]


def supervised_body(client: TestClient, model: str, **hyperparameters: Any) -> dict[str, Any]:
    """A valid body of a supervised job with freshly uploaded files."""
    return {
        "model": model,
        "training_file": upload(client, jsonl(answered_rows(8))),
        "validation_file": upload(client, jsonl(answered_rows(4, start=50))),
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }


def create_job(client: TestClient, model: str, **hyperparameters: Any) -> dict[str, Any]:
    answer = client.post("/v1/fine_tuning/jobs", json=job_body(client, model, **hyperparameters))
    assert answer.status_code == 200, answer.text
    return answer.json()


def created(client: Any, model: str) -> str:
    """The id of a valid job that an ``openai`` client creates, with files of its own."""
    files = [client.files.create(file=jsonl(rows(4, start)), purpose="fine-tune").id for start in (10, 50)]
    return client.fine_tuning.jobs.create(
        model=model, training_file=files[0], validation_file=files[1], method=method()
    ).id
