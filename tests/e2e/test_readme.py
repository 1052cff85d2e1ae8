"""The README's example keeps its promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import Stack

ROOT = Path(__file__).parents[2]


def test_the_readmes_example_runs_as_it_stands(stack: Stack) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[0]
    environment = os.environ | {"OPENAI_BASE_URL": str(stack.client.base_url), "OPENAI_API_KEY": stack.client.api_key}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert re.fullmatch(r"succeeded ft:troll-demo/additions:default::\w{8}\n", done.stdout), done.stdout + done.stderr
