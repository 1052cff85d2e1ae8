"""What is checked before the first step finds what would fail later, and changes nothing."""

import copy
import shutil
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from service.graders.schemas import parse_grader
from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from service.jobs.spec import RunSpec
from tests.workers.training import tiny
from tests.workers.training.tiny import Recorder
from workers import wire
from workers.answers import Answer
from workers.data.prompts import Prompt
from workers.graders import Grade
from workers.modeling import compilation, policy
from workers.modeling.critic import load_critic
from workers.rollouts.engine import Rollout
from workers.training import preflight
from workers.training.data.batch import Sample
from workers.training.optim import objective, reference, update
from workers.training.optim.critic import Critic
from workers.wire import ExitCode

MakeSpec = Callable[..., RunSpec]
Execute = Callable[..., tuple[int, Recorder]]
Usage = namedtuple("Usage", "total used free")

SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "judge",
    "input": [{"role": "user", "content": "{{sample.output_text}}"}],
    "range": [1, 5],
}
PYTHON = {"type": "python", "name": "own", "source": "def grade(sample, item):\n    return 0\n"}


def hyperparameters(**asked: object) -> ResolvedHyperparameters:
    wanted = {"batch_size": 4, "group_size": 4, "mini_batches": 2, "max_completion_tokens": 10, "n_steps": 6}
    return resolve(Hyperparameters.model_validate(wanted | asked), training_rows=8)


def groups(*rewards: Sequence[float | None]) -> list[list[Sample]]:
    rollout = Rollout([7, 8, 9], [-0.5] * 3, "stop")
    return [
        [
            Sample(Prompt({}, [5, 6]), rollout, Answer("", 0), Grade(r, error="other_error" if r is None else None))
            for r in group
        ]
        for group in rewards
    ]


PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 6], [15]]


@pytest.mark.parametrize("objective_name", ["troll", "clip", "dppo"])
def test_the_largest_step_changes_nothing(base: Path, objective_name: str) -> None:
    loaded = policy.load(base, torch.device("cpu"))
    h = hyperparameters(objective=objective_name)
    optimizer = update.make_optimizer(loaded, h)
    weights, random = copy.deepcopy(loaded.model.state_dict()), torch.get_rng_state()
    worst = preflight.worst_case_step(loaded, optimizer, h, PROMPTS)
    assert (worst.answers, worst.tokens) == (8, 8 * (8 + 10 - 1))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_of_compiled_layers_the_time_is_that_of_a_second_update(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    loaded = policy.load(base, torch.device("cpu"))
    loaded.compile()
    h = hyperparameters()
    left: list[bool] = []
    real = objective.loss

    def note(*given: Any) -> Any:
        left.append(any(parameter.grad is not None for parameter in loaded.model.parameters()))
        return real(*given)

    monkeypatch.setattr(objective, "loss", note)
    preflight.worst_case_step(loaded, update.make_optimizer(loaded, h), h, PROMPTS)
    assert left == [False, False]
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_the_largest_step_tries_the_critic_and_the_reference_and_changes_neither(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    h = hyperparameters(advantage="gae", kl_coefficient=0.1)
    loaded, model = policy.load(base, torch.device("cpu")), load_critic(base, torch.device("cpu"))
    made, frozen = Critic(model, update.make_optimizer(model, h)), reference.load(base, loaded)
    seen: list[list[bool]] = []
    real = objective.loss

    def noted(policy: Any, part: Any, *rest: Any) -> Any:
        # The critic's gradients lie beside what the policy needs, as in a step.
        seen.append([part.reference_log_probs is not None, *(p.grad is not None for p in model.model.parameters())])
        return real(policy, part, *rest)

    monkeypatch.setattr(objective, "loss", noted)
    before = copy.deepcopy(model.model.state_dict())
    optimizer = update.make_optimizer(loaded, h)
    preflight.worst_case_step(loaded, optimizer, h, PROMPTS, critic=made, reference=frozen)
    assert [all(each) for each in seen] == [True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    assert not made.optimizer.state
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_too_little_memory_for_a_critic_ends_a_job_before_it_trains(
    make_spec: MakeSpec, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(preflight, "critic_loss", short_of_memory)
    code, recorder = execute(make_spec(advantage="gae"))
    assert (code, recorder.failure().code) == (ExitCode.USER_ERROR, "out_of_memory")
    assert "before the first step" in recorder.failure().message


def test_the_largest_step_is_one_micro_batch_at_the_most(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "MICRO_BATCH_TOKENS", 40)
    loaded = policy.load(base, torch.device("cpu"))
    worst = preflight.worst_case_step(
        loaded, update.make_optimizer(loaded, hyperparameters()), hyperparameters(), PROMPTS
    )
    assert (worst.answers, worst.tokens) == (3, 3 * (8 + 10 - 1))


def test_too_little_memory_for_the_longest_answer_ends_a_job_before_it_trains(
    make_spec: MakeSpec, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = objective.loss

    def short_of_memory(policy: Any, part: Any, *rest: Any) -> Any:
        longest = max(len(rollout.token_ids) for rollout in part.rollouts)
        if longest == 30 and all(advantage == 0 for advantage in part.advantages.tolist()):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(policy, part, *rest)

    monkeypatch.setattr(objective, "loss", short_of_memory)
    code, recorder = execute(make_spec(max_completion_tokens=30))
    assert (code, recorder.failure().code) == (ExitCode.USER_ERROR, "out_of_memory")
    assert "answers of 30 tokens" in recorder.failure().message
    assert "Lower max_completion_tokens" in recorder.failure().message
    assert list(recorder.metrics()) == [0]


@pytest.mark.parametrize("settings", [{}, {"advantage": "gae"}])
def test_the_room_that_is_asked_for_is_what_is_written(
    make_spec: MakeSpec, execute: Execute, settings: dict[str, Any]
) -> None:
    spec = make_spec(n_steps=4, eval_interval=1, max_completion_tokens=1, **settings)
    _, recorder = execute(spec.model_copy(update={"checkpoints_kept": 1}))
    (told,) = (line for line in recorder.lines if isinstance(line, wire.Event) and line.key == "preflight")
    assert told.data
    # Of 4 checkpoints 3 can be resumed from while the last is written, and one is kept without its state.
    shutil.rmtree(spec.output_dir / "checkpoints" / "step-000001" / "state")
    written = sum(path.stat().st_size for path in spec.output_dir.rglob("*") if path.is_file())
    assert 0.8 * written < told.data["disk_needed_bytes"] <= written


def test_answers_to_different_prompts_are_told_apart_where_the_step_is_what_they_are_compared_with() -> None:
    grader = parse_grader(tiny.EXACT, "grader")
    assert preflight.nothing_to_learn(grader, groups((1, 1), (0, 0)), across_groups=True) is None
    assert preflight.nothing_to_learn(grader, groups((0, 0), (0, 0)), across_groups=True) is not None


@pytest.mark.parametrize("resumed", [False, True])
def test_too_little_room_on_the_disk_ends_a_job_before_it_starts(
    make_spec: MakeSpec, execute: Execute, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    spec = make_spec(n_steps=4, eval_interval=2)
    if resumed:
        _, first = execute(spec)
        again = {"checkpoints": first.checkpoints()[1:], "output_dir": spec.output_dir.with_name("again")}
        spec = spec.model_copy(update=again)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9, 100_000))
    code, recorder = execute(spec)
    assert (code, recorder.failure().code) == (ExitCode.NO_ROOM, "disk_full")
    assert "0.1 MB are free" in recorder.failure().message
    assert recorder.messages() == []


def test_a_grader_that_fails_on_the_training_rows_ends_a_job_before_it_trains(
    make_spec: MakeSpec, execute: Execute
) -> None:
    spec = make_spec()
    spec.training_path.write_text(spec.training_path.read_text().replace('"answer"', '"solution"'))
    code, recorder = execute(spec)
    assert (code, recorder.failure().code) == (ExitCode.GRADER_ERROR, "grader_failed")
    assert list(recorder.metrics()) == [0]


@pytest.mark.parametrize(
    ("grader", "rewards", "says"),
    [
        (tiny.EXACT, [(0, 0), (0, 0)], "All 4 answers to the first 2 training prompts earned 0, the least"),
        (tiny.EXACT, [(1, 1), (1, 1)], "nothing to gain"),
        (tiny.EXACT, [(1, 1), (0, 0)], "two answers of different rewards"),
        (tiny.EXACT, [(1, 0), (0, 0)], None),
        (tiny.EXACT, [(0, None), (0, 0)], "All 3 answers"),
        (SCORE, [(1, 1), (1, 1)], "the least"),
        (SCORE, [(5, 5)], "the most"),
        (SCORE, [(0.5, 0.5)], "earned 0.5: where"),
        (PYTHON, [(0, 0), (0, 0)], "earned 0: where"),
    ],
)
def test_answers_that_teach_nothing_are_noticed(
    grader: dict[str, Any], rewards: list[tuple[float | None, ...]], says: str | None
) -> None:
    reason = preflight.nothing_to_learn(parse_grader(grader, "grader"), groups(*rewards))
    assert (says in reason) if says and reason else reason is says


def test_a_job_that_cannot_learn_is_warned_once(make_spec: MakeSpec, execute: Execute) -> None:
    _, recorder = execute(make_spec(grader=tiny.EXACT, n_steps=2))
    (warning,) = (line for line in recorder.lines if isinstance(line, wire.Event) and line.level == "warn")
    assert "supervised fine-tuning" in warning.message
    assert recorder.lines.index(warning) < min(
        number for number, line in enumerate(recorder.lines) if isinstance(line, wire.Progress) and line.step == 1
    )


def test_how_long_a_job_takes_is_told_before_its_first_step(make_spec: MakeSpec, execute: Execute) -> None:
    _, recorder = execute(make_spec())
    first = next(line for line in recorder.lines if isinstance(line, wire.Progress))
    assert first.step == 0
    assert first.seconds_left is not None
    assert 0 < first.seconds_left < 600


def test_the_estimate_grows_with_what_is_to_be_done() -> None:
    evaluated = [sample for group in groups((1.0, 0.0), (1.0, 0.0)) for sample in group]
    worst = preflight.WorstCase(answers=2, tokens=100, seconds=2.0)
    # 16 answers a step: 16 times half a second of sampling and 16 * 5 tokens of training, then 2 evaluations.
    h = hyperparameters(n_steps=6, eval_interval=3)
    assert preflight.seconds_of_run(h, worst, evaluated, 2.0) == pytest.approx(6 * (8 + 1.6) + 2 * 2.0)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        # A step's answers take 8 s, as does learning from them. Beside each step but the last another is sampled.
        ({"max_staleness": 1}, 8 + 5 * 8 + 8),
        # Beside step 1 the answers of 3 steps.
        ({"max_staleness": 3, "partial_rollouts": False}, 8 + 24 + 4 * 8 + 8),
        # All of step 2 and thirds of steps 3 and 4, then two thirds of step 3 and thirds of 4 and 5.
        ({"max_staleness": 3, "max_completion_tokens": 3}, 8 + 40 / 3 + 32 / 3 + 3 * 8 + 8),
    ],
    ids=["one step ahead", "three steps ahead", "in pieces"],
)
def test_the_estimate_knows_what_is_sampled_while_a_step_is_trained(asked: dict[str, Any], expected: float) -> None:
    evaluated = [sample for group in groups((1.0, 0.0), (1.0, 0.0)) for sample in group]
    worst = preflight.WorstCase(answers=2, tokens=100, seconds=10.0)
    h = hyperparameters(n_steps=6, eval_interval=3, **asked)
    assert preflight.seconds_of_run(h, worst, evaluated, 2.0) == pytest.approx(expected + 2 * 2.0)
