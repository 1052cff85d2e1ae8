"""The package on its own: with nothing but torch installed it is imported, and trains."""

import pkgutil
import subprocess
import sys
from importlib import metadata

import troll
from tests.test_packaging import closure

ALONE = """
import importlib, sys

allowed = set(sys.argv[1].split())

class Installed:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Installed())
import torch

for name in sys.argv[2].split():
    importlib.import_module(name)

import troll

logits, tokens = torch.randn(4, 50, requires_grad=True), torch.arange(4)
hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
for kind in troll.OBJECTIVES.values():
    objective = kind()
    old = troll.sparsify(logits + 0.5 * torch.randn(4, 50), tokens, **objective.sparsity)
    objective.loss(logits, old, tokens, torch.ones(4), sequence_ids=tokens).loss.backward()
    objective.fused_loss(hidden, weight, old, tokens, torch.ones(4), sequence_ids=tokens).loss.backward()
assert all(tensor.grad.norm() > 0 for tensor in (logits, hidden, weight))
"""


def modules() -> list[str]:
    """All of the package but what is made for another library: its trainers, and kernels where there is Triton."""
    found = [module.name for module in pkgutil.walk_packages(troll.__path__, "troll.", onerror=lambda name: None)]
    return [name for name in found if not name.startswith(("troll.integrations.", "troll.kernels."))]


def importable(distributions: set[str]) -> set[str]:
    """Top-level names of what the distributions install."""
    packages = metadata.packages_distributions()
    return {name for name, of in packages.items() if {each.lower().replace("_", "-") for each in of} & distributions}


def test_it_works_where_nothing_but_torch_is_installed() -> None:
    assert {"troll", "troll.objectives.troll", "troll.projection", "troll.kernels"} <= {"troll", *modules()}
    allowed = sys.stdlib_module_names | importable(closure(["torch"])) | {"troll"}
    assert "torch" in allowed
    assert not {"numpy", "transformers", "pydantic", "service"} & allowed
    command = [sys.executable, "-c", ALONE, " ".join(allowed), " ".join(modules())]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
