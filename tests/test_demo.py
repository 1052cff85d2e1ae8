"""The README's first command keeps its promise."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.cli.demo import HELD_OUT, write_rows
from service.embedded.folder import Folder
from service.embedded.stack import DEMO_MODEL
from tests.conftest import sharing_demo_model

ROOT = Path(__file__).parents[1]
OUTSIDE = ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY")


@dataclass(frozen=True)
class Demo:
    folder: Path
    output: str
    result: dict[str, Any]


def environment() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name not in OUTSIDE and not name.startswith("TROLL_")}


def run(*command: object, **more: str) -> "subprocess.CompletedProcess[str]":
    text = [str(part) for part in command]
    return subprocess.run(
        [sys.executable, *text], env=environment() | more, cwd=ROOT, capture_output=True, text=True, check=False
    )


def pairs(path: Path) -> list[frozenset[int]]:
    """The numbers that each row of a file adds, in no order."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [frozenset(map(int, re.findall(r"\d+", row["messages"][0]["content"]))) for row in rows]


def test_held_out_additions_are_in_no_order_among_the_training_rows(tmp_path: Path) -> None:
    training, held_out = map(pairs, write_rows(tmp_path))
    assert len(held_out) == len(set(held_out)) == HELD_OUT
    assert len(training) > 2000
    assert set(training) & set(held_out) == set()


def test_rows_hold_the_right_answers(tmp_path: Path) -> None:
    for path in write_rows(tmp_path):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            assert sum(map(int, row["messages"][0]["content"].rstrip("=").split("+"))) == int(row["answer"])


def test_the_demo_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    done = run("-m", "service.cli", "demo", "--data-dir", tmp_path)
    assert done.returncode == 1
    assert "holds something else than a demo" in done.stderr
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo") / "data"
    # The demo makes its base model anew, so other tests take it from here.
    with sharing_demo_model(tmp_path_factory) as shared:
        done = run("-m", "service.cli", "demo", "--data-dir", folder)
        assert done.returncode == 0, done.stdout + done.stderr
        if not shared.exists():
            shutil.copytree(folder / "models" / DEMO_MODEL, shared)
    yield Demo(folder, done.stdout, json.loads(done.stdout.splitlines()[-1]))
    run("-m", "service.cli", "down", "--data-dir", folder)


@pytest.mark.e2e
def test_the_demo_teaches_a_model_to_add(demo: Demo) -> None:
    names = {"job_id", "status", "success_before", "success_after", "steps", "seconds_training", "seconds_total"}
    assert demo.result.keys() == names
    assert demo.result["status"] == "succeeded"
    assert demo.result["success_before"] <= 0.5
    assert demo.result["success_after"] >= 0.95


@pytest.mark.e2e
def test_the_demo_shows_before_and_after_and_stops_its_stack(demo: Demo) -> None:
    assert re.search(r"full validation mean reward=", demo.output)
    assert re.search(r"before +┃ after", demo.output)
    assert (demo.folder / "weights" / "config.json").exists()
    assert Folder(demo.folder).holder() is None
