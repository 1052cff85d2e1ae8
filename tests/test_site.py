"""The documentation as a site."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = re.compile(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+stylesheet[^>]+href="(?:https?:)?//')
    pages = list(tmp_path.glob("*.html"))
    assert len(pages) > 15
    assert [page.name for page in pages if loaded.search(page.read_text())] == []
    formulas = [formula for page in pages for formula in re.findall(r"<math.*?</math>", page.read_text(), re.DOTALL)]
    assert [formula for formula in formulas if "\\" in re.sub(r"<[^>]+>", "", formula)] == []
