"""The whole stack as a user starts it: ``troll up --detach --demo-model``, and the official client pointed at it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from service.cli import demo
from service.embedded.stack import DEMO_MODEL
from tests.conftest import PATIENCE
from tests.workers.graders import jails
from tests.workers.graders.servers import Asked, Server, serve

OUTSIDE = ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL")


@dataclass(frozen=True)
class Stack:
    """A running stack and a strict client of it."""

    data_dir: Path
    model: str
    client: OpenAI

    def training_children(self) -> list[psutil.Process]:
        """Processes that train or wait to, in this stack."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            ancestors = [str(part) for parent in process.parents() for part in parent.cmdline()]
            if "workers.training" in (process.info["cmdline"] or []) and str(self.data_dir) in " ".join(ancestors):
                found.append(process)
        return found


JUDGE = "judges/right-or-wrong"
JUDGE_USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}


def judged(asked: Asked) -> dict[str, Any]:
    """A judge's answer, which is 1 where the last message says the same thing before and behind "=="."""
    said, right = asked.json["messages"][-1]["content"].split("==")
    result = json.dumps({"steps": [], "result": float(said.strip() == right.strip())})
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": JUDGE,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": result}}],
        "usage": JUDGE_USAGE,
    }


def troll(*arguments: str, timeout: float = PATIENCE, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in OUTSIDE and not name.startswith("TROLL_")
    }
    environment |= {"TROLL_WANDB_MODE": "offline", **variables}
    command = [sys.executable, "-m", "service.cli", *arguments]
    # As at most terminals: what is private has to be made so.
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False, umask=0o022
    )


@pytest.fixture(scope="session")
def judge() -> Iterator[Server]:
    """An OpenAI-compatible server with the model ``JUDGE``."""
    with serve(judged) as server:
        yield server


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, demo_model: Path, judge: Server) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    # As somebody else may have made it, with a folder in it that an earlier version left open.
    folder.chmod(0o755)
    (folder / "uploads").mkdir()
    (folder / "uploads").chmod(0o755)
    shutil.copytree(demo_model, folder / "models" / DEMO_MODEL)
    graders = {
        "jail": jails.TIERS[0] if jails.NAMESPACES else "off",
        "model_endpoints": [{"base_url": f"{judge.origin}/v1", "models": [JUDGE]}],
    }
    command = ("up", "--data-dir", str(folder), "--port", "0", "--demo-model", "--detach", "--api-processes", "2")
    started = troll(*command, TROLL_GRADERS=json.dumps(graders))
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        told = json.loads(started.stdout.splitlines()[-1])
        with OpenAI(
            base_url=told["base_url"], api_key=told["api_key"], _strict_response_validation=True, max_retries=0
        ) as client:
            yield Stack(folder, told["model"], client)
    finally:
        stopped = troll("down", "--data-dir", str(folder))
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr


@pytest.fixture(scope="session")
def datasets(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Ids of the demo's training and held-out rows."""
    training, held_out = demo.write_rows(tmp_path_factory.mktemp("rows"))
    files = stack.client.files
    return (
        files.create(file=training, purpose="fine-tune").id,
        files.create(file=held_out, purpose="fine-tune").id,
    )


@pytest.fixture
def create(stack: Stack, datasets: tuple[str, str]) -> Callable[..., Any]:
    """``create(n_steps=4)`` submits the demo's job with these hyperparameters changed."""

    def make(model: str = stack.model, **hyperparameters: Any) -> Any:
        training, held_out = datasets
        settings: Any = demo.HYPERPARAMETERS | hyperparameters
        grader: Any = demo.GRADER
        return stack.client.fine_tuning.jobs.create(
            model=model,
            training_file=training,
            validation_file=held_out,
            seed=3,
            method={
                "type": "reinforcement",
                "reinforcement": {"grader": grader, "hyperparameters": settings},
            },
        )

    return make
