"""The kernels against the plain version on a machine without a GPU, by Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so `properties.py` runs once in a process of its own; every
test there is one test here.
"""

import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

PROPERTIES = Path(__file__).with_name("properties.py")
ROOT = Path(__file__).parents[3]
NAMES = [node.name for node in ast.parse(PROPERTIES.read_text()).body if isinstance(node, ast.FunctionDef)]
TESTS = [name for name in NAMES if name.startswith("test_")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Per test function what each of its runs said: nothing where it passed."""
    report = tmp_path_factory.mktemp("interpreted") / "report.xml"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(PROPERTIES)]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert report.exists(), run.stdout + run.stderr
    outcomes: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        said = "\n".join(f"{case.get('name')}: {child.get('message')}\n{child.text}" for child in case)
        outcomes.setdefault(str(case.get("name")).partition("[")[0], []).append(said)
    return outcomes


@pytest.mark.parametrize("name", TESTS)
def test_interpreted(name: str, results: dict[str, list[str]]) -> None:
    assert name in results, f"{name} did not run"
    failures = [said for said in results[name] if said]
    assert not failures, "\n\n".join(failures)
