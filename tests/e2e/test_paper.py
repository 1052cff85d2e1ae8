"""Runs of the paper through every real part, from downloaded rows to figures, with a tiny model and few steps."""

import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from examples.paper import __main__ as paper
from examples.paper.mathematics import BOXED_INSTRUCTION
from examples.tasks.task import CHAT_TEMPLATE, Problem, Recipe, Task
from tests.e2e.conftest import Stack, troll
from tests.examples.paper import made
from tests.workers.graders import jails
from workers.demo import SPECIAL, for_chats

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

pytest.importorskip("pyarrow", reason="the extra 'paper' is not installed")

FEW = {
    "batch_size": 4,
    "group_size": 4,
    "mini_batches": 2,
    "n_steps": 2,
    "eval_interval": 2,
    "max_completion_tokens": 16,
}
SETS = ["math500", "amc", "aime2024", "aime2025", "omni-math", "olympiadbench", "minerva"]


def tokenizer() -> "PreTrainedTokenizerFast":
    """One token for each word, and for each sign and space between words, of what ``write`` writes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pieces = r"\w+|\W"
    problems = [write(random.Random(number), 0.5) for number in range(20)]
    words = re.findall(pieces, "".join(problem.question + problem.answer for problem in problems))
    vocabulary = dict.fromkeys([*SPECIAL, *map(str, range(100)), *words])
    made_of = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<|unknown|>")
    )
    made_of.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "isolated")
    made_of.decoder = decoders.Fuse()
    return for_chats(made_of, CHAT_TEMPLATE)


def write(dice: random.Random, right: float) -> Problem:
    """Asks for a digit, in a box or by a program, and gets it or the other one."""
    digit, other = dice.sample("23", 2)
    said = digit if dice.random() < right else other
    if dice.random() < 0.5:
        return Problem(f"{asking(dice.randrange(100), digit)}\n\n{BOXED_INSTRUCTION}", f"\\boxed{{{said}}}", digit)
    question = asking(dice.randrange(100), digit) + made.CODE_REQUEST
    return Problem(question, f"```python\nprint({said})\n```", digit)


def asking(number: int, digit: str) -> str:
    return f"Of {number} and {digit}, say {digit}."


@pytest.fixture(scope="module")
def model(stack: Stack) -> str:
    """A base model of the stack that answers in the forms that are asked for, and rightly half of the time."""
    recipe = Recipe(0.5, 0.5, updates=100, batch=8, width=64, layers=2, heads=2, context=512)
    task = Task("paper", "", write, tokenizer, {}, 32, recipe)
    return task.base(stack.data_dir / "models").name


def run(stack: Stack, path: Path) -> tuple[str | None, list[dict[str, Any]]]:
    """The model that a job's file makes, None for an evaluation, and the data of each event with metrics."""
    where = ("--data-dir", str(stack.data_dir))
    followed = troll("submit", str(path), "--follow", "--json", *where)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    job, *told = map(json.loads, followed.stdout.splitlines())
    shown = json.loads(troll("jobs", "show", job["id"], "--json", *where).stdout)
    return shown["fine_tuned_model"], [event["data"] for event in told if event["type"] == "metrics"]


def shortened(path: Path, model: str) -> Path:
    """The same job with another model and a few small steps."""
    job = yaml.safe_load(path.read_text())
    job["model"] = model
    parts = job["method"][job["method"]["type"]]
    parts["hyperparameters"] |= {name: few for name, few in FEW.items() if name in parts["hyperparameters"]}
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def test_dapo_math_and_the_seven_sets(stack: Stack, model: str, tmp_path: Path) -> None:
    train = [made.dapo(asking(n, digit), digit, f"{n}-{digit}") for n in range(8) for digit in "23"]
    valid = [made.dapo(asking(n, digit), digit, f"{n}-{digit}") for n in range(8, 10) for digit in "23"]
    suite = [
        made.chat(name, made.asked(f"{asking(10, '2')}\n\n{BOXED_INSTRUCTION}"), "2", "math", index=0) for name in SETS
    ]
    sources = {"train": train, "valid": valid, "suite": suite}
    files = {name: str(made.write_parquet(tmp_path / f"{name}.parquet", rows)) for name, rows in sources.items()}
    paper.main(["prepare", "dapo", str(tmp_path), "--train", files["train"], "--valid", files["valid"]])
    paper.main(["prepare", "math", str(tmp_path), "--sets", files["suite"]])
    paper.main(["write", str(tmp_path)])
    tuned, told = run(stack, shortened(tmp_path / "jobs" / "dapo-qwen3-0.6b-grpo-troll.yaml", model))
    assert [each["step"] for each in told] == [0, 1, 2]
    # The base model says the digit that is asked for half of the time.
    assert all(0 < each["train_mean_reward"] < 1 for each in told[1:])
    after = told[2]["validation_sets"]
    assert [after[name]["answers_per_row"] for name in SETS] == [1, 32, 32, 32, 1, 1, 1]
    assert {each["rows"] for each in after.values()} == {1}
    assert all(0 < after[name]["mean_at_k"] < 1 for name in ("amc", "aime2024", "aime2025"))

    paper.main(["evaluation", str(tuned), str(tmp_path)])
    (evaluation,) = (tmp_path / "jobs").glob("evaluation-*.yaml")
    none, again = run(stack, shortened(evaluation, str(tuned)))
    assert none is None
    measured = {name: found for each in again for name, found in each["validation_sets"].items()}
    assert [(name, found["answers_per_row"]) for name, found in measured.items()] == [
        ("dapo", 1),
        *((name, after[name]["answers_per_row"]) for name in SETS),
    ]
    # Greedy answers are the weights' alone.
    for name in ("math500", "omni-math", "olympiadbench", "minerva"):
        assert measured[name]["mean_at_k"] == after[name]["mean_at_k"]


@pytest.mark.skipif(not jails.NAMESPACES, reason="this kernel allows no user namespaces, so no jail can be made here")
def test_eurus_code(stack: Stack, model: str, tmp_path: Path) -> None:
    def problem(number: int, digit: str) -> made.Source:
        return made.program(
            asking(number, digit), {"inputs": ["", "\n"], "outputs": [digit, f"{digit}\n"]}, system=None
        )

    train = [*made.EURUS_MATH, *(problem(n, digit) for n in range(8) for digit in "23")]
    valid = [*made.EURUS_MATH, *(problem(n, digit) for n in range(8, 10) for digit in "23")]
    files = [str(made.write_parquet(tmp_path / f"{len(rows)}.parquet", rows)) for rows in (train, valid)]
    paper.main(["prepare", "eurus", str(tmp_path), "--train", files[0], "--valid", files[1]])
    paper.main(["write", str(tmp_path)])
    _, told = run(stack, shortened(tmp_path / "jobs" / "eurus-code-qwen3-0.6b-grpo-clip.yaml", model))
    assert [each["step"] for each in told] == [0, 1, 2]
    assert all(0 < each["train_mean_reward"] < 1 for each in told[1:])
    assert told[2]["full_valid_mean_reward"] is not None
    assert told[2]["mean_unresponsive_rewards"] == 0
