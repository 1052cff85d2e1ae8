"""The made tasks: rows, graders and base models."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.utils import logging
from typer.testing import CliRunner

from examples.tasks import __main__ as command
from examples.tasks.registry import TASKS
from examples.tasks.task import PARTS, Part, Task
from service.cli import app
from service.graders.schemas import parse_grader
from service.jobs.check import check
from workers.graders import build
from workers.graders.grading import GraderSample

each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def quick(task: Task) -> Task:
    """Three updates are enough for a model folder."""
    return replace(task, recipe=replace(task.recipe, updates=3, batch=4))


def questions(task: Task, part: Part, seed: int) -> set[str]:
    return {row["messages"][0]["content"] for row in task.rows(part, 40, seed)}


@each_task
def test_rows_can_be_trained_on(task: Task, tmp_path: Path) -> None:
    for part in PARTS:
        task.write_rows(tmp_path / part, part, 20, seed=1)
    found = check(tmp_path / "train", tmp_path / "valid", parse_grader(task.grader, "grader"), method="reinforcement")
    assert (found.errors, found.warnings) == ([], [])


@each_task
def test_the_same_seed_gives_the_same_rows_and_another_others(task: Task) -> None:
    assert task.rows("train", 20, 1) == task.rows("train", 20, 1) != task.rows("train", 20, 2)


@each_task
def test_no_question_is_in_two_parts_whatever_the_seeds(task: Task) -> None:
    train = questions(task, "train", 1) | questions(task, "train", 2)
    assert not train & (questions(task, "valid", 1) | questions(task, "held-out", 2))


def test_more_rows_than_there_are_questions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has only \d+ questions for 'held-out'"):
        TASKS["additions"].rows("held-out", 5000, 1)


@each_task
def test_the_grader_wants_what_a_pupil_without_mistakes_says(task: Task) -> None:
    dice = random.Random(1)
    for right in (1.0, 0.0):
        problems = [task.write(dice, right) for _ in range(50)]
        samples = [GraderSample({"answer": problem.expected}, problem.answer) for problem in problems]
        rewards = [grade.reward for grade in build(parse_grader(task.grader, "grader")).grade(samples)]
        said = [problem.answer.rstrip(" .").split()[-1] == problem.expected for problem in problems]
        assert rewards == [float(each) for each in said]
        # By luck, what is added and what is taken may be the same.
        assert sum(said) == 50 if right else sum(said) < 15


@each_task
def test_what_the_corpus_says_fits_into_an_answer_and_the_context(task: Task) -> None:
    tokenizer, dice = task.tokenizer(), random.Random(1)
    problems = [task.write(dice, 0.5) for _ in range(200)]
    answers = [len(ids) for ids in tokenizer([f"{p.answer}<|eos|>" for p in problems])["input_ids"]]
    asked = [len(ids) for ids in tokenizer([f"<|user|>{p.question}<|assistant|>" for p in problems])["input_ids"]]
    assert max(answers) <= task.max_completion_tokens
    assert max(asked) + task.max_completion_tokens <= task.recipe.context
    assert tokenizer.unk_token_id not in tokenizer(problems[0].question)["input_ids"]


@each_task
def test_a_base_model_is_the_same_bytes_again_whatever_else_was_drawn(task: Task, tmp_path: Path) -> None:
    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    one = quick(task).base(tmp_path / "one")
    torch.manual_seed(17)
    another = quick(task).base(tmp_path / "another")
    files = sorted(path.name for path in one.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert files == sorted(path.name for path in another.iterdir())
    assert [name for name in files if (one / name).read_bytes() != (another / name).read_bytes()] == []
    assert torch.get_num_threads() == threads


def test_another_recipe_is_another_folder_and_the_same_one_is_not_made_twice(tmp_path: Path) -> None:
    task = quick(TASKS["additions"])
    folder = task.base(tmp_path)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert task.base(tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert replace(task, recipe=replace(task.recipe, seed=2)).fingerprint != task.fingerprint


def test_building_leaves_a_job_that_passes_and_says_what_the_base_model_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "COUNTS", {"train": 8, "valid": 4, "held-out": 6})
    told = command.build(quick(TASKS["additions"]), tmp_path / "job", 1, tmp_path / "cache")
    assert {path.name for path in (tmp_path / "job").iterdir()} == {
        "train.jsonl",
        "valid.jsonl",
        "held-out.jsonl",
        "job.yaml",
    }
    assert (Path(told["model"]) / "config.json").exists()
    assert [len(told[how]["right"]) for how in ("greedy", "sampled")] == [6, 6]
    files = [f"{tmp_path}/job/{name}" for name in ("train.jsonl", "valid.jsonl", "job.yaml")]
    asked = ["check", files[0], "--validation", files[1], "--job", files[2], "--model", told["model"]]
    done = CliRunner().invoke(app, asked)
    assert (done.exit_code, done.stderr) == (0, "")
