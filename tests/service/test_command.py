"""The ``troll`` command where only the objective is installed."""

import subprocess
import sys

WITHOUT = """
import sys

missing = sys.argv[1]

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from service.command import main
sys.argv[1:] = ["--help"]
main()
"""


def run(missing: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, missing], capture_output=True, text=True, timeout=120, check=False
    )


def test_it_says_what_to_install() -> None:
    result = run("typer")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.strip() == (
        "troll: typer is not installed. The command needs the service: pip install 'troll-rft[service]'"
    )


def test_a_module_of_its_own_that_is_missing_is_a_bug_with_a_traceback() -> None:
    result = run("service.cli.keys")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_it_runs_where_everything_is_there() -> None:
    result = run("nothing.of.this.name")
    assert result.returncode == 0
    assert "reinforcement fine-tuning" in result.stdout
