"""Every code block of the documentation is run, with fewer steps, page by page from the top, against a running stack.

Blocks that are marked ``elsewhere`` belong on another machine (containers, more workers, a clone to set up): of
these the syntax is checked. JSON and YAML are read, SQL is run and rolled back, and ``text`` is not run.
"""

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

import psycopg
import pytest
import torch
import yaml
from openai import OpenAI
from pydantic import TypeAdapter

from service.graders.settings import GraderSettings
from tests.conftest import PATIENCE
from tests.e2e.conftest import Stack
from tests.e2e.conftest import troll as command
from tests.e2e.test_main_job import wait

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = {"contributing.md", "changelog.md", "security.md", "reference.md"}
"""Pages that building the site makes of others."""
SHORTER = {'"n_steps": 20': '"n_steps": 2', '"n_epochs": 1, "batch_size": 16': '"n_steps": 1, "batch_size": 4'}
"""How much is learned is another test's."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    elsewhere: bool
    code: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in re.finditer(r"^( *)```([^\n]*)\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE):
        indent, (language, *rest), code = found[1], found[2].split() or [""], found[3]
        code = re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        yield Block(page, text[: found.start()].count("\n") + 1, language, rest == ["elsewhere"], code)


BLOCKS = [block for page in PAGES if page.name not in MADE for block in blocks_of(page)]
RUN = sorted({block.page for block in BLOCKS if block.language in ("python", "sh") and not block.elsewhere})


def test_every_block_is_of_a_kind_that_is_tried() -> None:
    kinds = {str(block): block.language for block in BLOCKS}
    known = {"python", "sh", "json", "yaml", "sql", "text", "{toctree}"}
    assert {where: kind for where, kind in kinds.items() if kind not in known} == {}


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.elsewhere], ids=str)
def test_what_is_for_elsewhere_is_well_formed(block: Block) -> None:
    if block.language == "python":
        compile(block.code, str(block), "exec")
        return
    done = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True, check=False)
    assert (block.language, done.returncode, done.stderr) == ("sh", 0, "")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in ("json", "yaml")], ids=str)
def test_data_can_be_read(block: Block) -> None:
    read = json.loads(block.code) if block.language == "json" else yaml.safe_load(block.code)
    if "jail" in read:
        TypeAdapter(GraderSettings).validate_python(read)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sql"], ids=str)
def test_statements_are_taken(servers: Any, block: Block) -> None:
    with psycopg.connect(servers.database_owner_url) as connection:
        connection.execute(block.code.encode())
        connection.rollback()


@pytest.fixture
def place(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the examples, and the environment that ``troll up`` says to set."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    example = tmp_path / "examples" / "additions.yaml"
    # How much is learned is another test's.
    example.write_text(example.read_text().replace("n_steps: 20", "n_steps: 2"))
    admin = command("admin", "keys", "create", "--organization", "default", "--data-dir", str(stack.data_dir))
    assert admin.returncode == 0, admin.stdout + admin.stderr
    monkeypatch.setenv("OPENAI_BASE_URL", str(stack.client.base_url))
    monkeypatch.setenv("OPENAI_API_KEY", stack.client.api_key)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", re.findall(r"sk-troll-admin-\S+", admin.stdout)[0])
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def given_to(page: Path, stack: Stack, files: tuple[str, str]) -> dict[str, Any]:
    """What the blocks of a reference page speak of, and do not make themselves."""
    if page.name == "objective.md":
        old = torch.randn(6, 40)
        return {
            "old_logits": old,
            "logits": (old + 0.1).requires_grad_(),
            "tokens": torch.randint(40, (6,)),
            "advantages": torch.randn(6),
            "mask": torch.ones(6),
        }
    if page.name != "api.md":
        return {}
    grader = {
        "type": "string_check",
        "name": "exact",
        "operation": "eq",
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
    }
    settings = {"n_steps": 1, "batch_size": 4, "max_completion_tokens": 4, "eval_interval": 1}
    request: dict[str, Any] = {
        "model": stack.model,
        "training_file": files[0],
        "validation_file": files[1],
        "method": {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": settings}},
    }
    job = stack.client.fine_tuning.jobs.create(**request)
    project = OpenAI(base_url=stack.client.base_url, api_key="none").admin.organization.projects.create(name="other")
    return {
        "request": request,
        "job": wait(stack, job.id),
        "last_seq": 0,
        "project": project,
        "gsm8k": stack.client.files.retrieve(files[1]),
        "aime": stack.client.files.retrieve(files[1]),
        "mathematics": {"type": "math_verify", "reference": "{{item.answer}}"},
    }


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_a_page_does_what_it_says(stack: Stack, datasets: tuple[str, str], place: Path, page: Path) -> None:
    names = given_to(page, stack, datasets)
    for block in blocks_of(page):
        if block.elsewhere:
            continue
        if block.language == "python":
            code = "\n" * block.line + block.code
            for written, tried in SHORTER.items():
                code = code.replace(written, tried)
            exec(compile(code, str(page), "exec"), names)
        elif block.language == "sh":
            done = subprocess.run(
                ["bash", "-euo", "pipefail"],
                input=block.code,
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
            assert done.returncode == 0, f"{block}: {done.stdout}{done.stderr}"
    if page.name == "README.md":
        assert names["job"].status == "succeeded"
