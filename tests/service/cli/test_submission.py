"""``troll submit``'s YAML: every mistake is told with its line."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from service.cli.failure import CommandError
from service.cli.submission import read

VALID = """\
model: tiny/base
training_file: train.jsonl
validation_file: file-abc
method:
  type: reinforcement
  reinforcement:
    grader: {type: string_check, name: exact, operation: eq, input: "{{sample.output_text}}", reference: "42"}
    hyperparameters:
      learning_rate: 1e-4
      kl_bound: 0.05
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return path

    return make


def test_a_valid_file_is_the_body_of_the_request(write: Callable[[str], Path]) -> None:
    document = read(write(VALID))
    assert document.body["method"]["reinforcement"]["hyperparameters"] == {"learning_rate": 1e-4, "kl_bound": 0.05}
    assert document.lines["method.reinforcement.hyperparameters.kl_bound"] == 10


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (VALID + "  bad indent\n", r"job.yaml:11: not valid YAML"),
        ("- a\n- b\n", r"job.yaml:1: the file must hold keys and values"),
        ("", r"job.yaml:1: the file must hold keys and values"),
        (VALID + "hyperparameter: {}\n", r"job.yaml:11: unknown key 'hyperparameter'"),
        (VALID + "model: other\n", r"job.yaml:11: 'model' is given twice, first on line 1"),
        (VALID.replace("model: tiny/base\n", ""), r"job.yaml:1: 'model' is missing"),
        (VALID.replace("kl_bound: 0.05", "learning_rate: 1"), r"job.yaml:10: '.*learning_rate' is given twice"),
        ("model: !!python/object:os.system x\n", r"job.yaml:1: not valid YAML"),
    ],
)
def test_mistakes_are_told_with_their_line(write: Callable[[str], Path], text: str, says: str) -> None:
    with pytest.raises(CommandError, match=says):
        read(write(text))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=re.escape(str(tmp_path / "none.yaml"))):
        read(tmp_path / "none.yaml")


def test_an_error_about_something_deeper_points_to_the_nearest_key(write: Callable[[str], Path]) -> None:
    error = read(write(VALID)).error("too wide", "method.reinforcement.hyperparameters.kl_bound")
    assert re.search(r"job.yaml:10: too wide$", str(error))
    error = read(write(VALID)).error("odd", "method.reinforcement.grader.operation.what")
    assert re.search(r"job.yaml:7: odd$", str(error))
