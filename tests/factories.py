"""What tests are made of: models, rows, files and jobs that are valid unless a test says otherwise."""

import copy
import json
from pathlib import Path
from typing import Any

import psycopg
from fastapi.testclient import TestClient
from psycopg.types.json import Jsonb

from service.embedded.servers import Servers

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


def evaluation_body(client: TestClient, model: str, **hyperparameters: Any) -> dict[str, Any]:
    """A valid body of an evaluation of two freshly uploaded files, of 4 and 3 rows."""
    sets = [
        {"name": name, "file": upload(client, jsonl(rows(count, start)))}
        for name, count, start in (("a", 4, 10), ("b", 3, 50))
    ]
    parts = {"grader": dict(GRADER), "validation_sets": sets, "hyperparameters": hyperparameters}
    return {"model": model, "method": {"type": "evaluation", "evaluation": parts}}


UNREADABLE = (
    "newer",
    "newer shape",
    "unknown setting",
    "unknown value",
    "unknown grader",
    "missing method",
    "list",
    "null",
    "version in words",
    "version true",
    "version zero",
)
"""Ways in which the specification of a reinforcement job may be stored that this version cannot read."""


def spoiled(spec: dict[str, Any], how: str) -> Any:
    """``spec`` as something that cannot be read, ``how`` being one of ``UNREADABLE``."""
    spec = copy.deepcopy(spec)
    hyperparameters = spec["method"]["hyperparameters"]
    if how == "unknown setting":
        hyperparameters["foresight"] = 1
    elif how == "unknown value":
        hyperparameters["objective"] = "oracle"
    elif how == "unknown grader":
        spec["method"]["grader"] = {"type": "oracle", "name": "o"}
    elif how == "missing method":
        del spec["method"]
    others = {
        "newer": spec | {"version": 1000},
        "newer shape": {"version": 1000, "recipe": {"steps": []}},
        "list": [spec],
        "null": None,
        "version in words": spec | {"version": "two"},
        "version true": spec | {"version": True},
        "version zero": spec | {"version": 0},
    }
    return others.get(how, spec)


def rewrite(servers: Servers, id: str, *, column: str = "spec", content: Any, table: str = "fine_tuning_jobs") -> None:
    """Store ``content`` as JSON in place of what a row holds, as another version or a mishap might."""
    with psycopg.connect(servers.database_owner_url, autocommit=True) as owner:
        owner.execute(f"UPDATE {table} SET {column} = %s WHERE id = %s", [Jsonb(content), id])


def spoil(servers: Servers, id: str, how: str) -> None:
    """Make what job ``id`` is to do unreadable."""
    with psycopg.connect(servers.database_owner_url) as owner:
        (spec,) = owner.execute("SELECT spec FROM fine_tuning_jobs WHERE id = %s", [id]).fetchone() or ({},)
    rewrite(servers, id, content=spoiled(spec, how))
