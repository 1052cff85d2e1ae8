"""Groups that teach nothing are left out and replaced, the same ones after any interruption."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from service.jobs.spec import RunSpec
from tests.workers.training import tiny
from tests.workers.training.test_reinforcement import Killed, attempt, killed_at, result_of, weights
from tests.workers.training.tiny import Recorder
from workers.answers import Answer
from workers.data.prompts import Prompt
from workers.graders import Grade
from workers.rollouts.engine import Rollout
from workers.training.data import batch
from workers.training.data.batch import Sample
from workers.training.sampling import filtering
from workers.training.sampling.filtering import Groups
from workers.wire import ExitCode

MakeSpec = Callable[..., RunSpec]
Execute = Callable[..., tuple[int, Recorder]]

LIKE = tiny.EXACT | {"name": "like", "reference": "1", "operation": "like"}
"""Gives 1 or 0, so that many groups of two do not differ."""

UNREADABLE = {
    "type": "multi",
    "name": "unreadable",
    "calculate_output": "found - 1",
    "graders": {"found": tiny.EXACT | {"input": "{{sample.output_json.answer}}"}},
}
"""Gives -1 to whatever is no JSON."""


def hyperparameters(**asked: Any) -> ResolvedHyperparameters:
    return resolve(Hyperparameters(**{"batch_size": 2, "max_completion_tokens": 4} | asked), training_rows=8)


def group(*rewards: float | None, tokens: int = 1) -> list[Sample]:
    grades = [Grade(each, error=None if each is not None else "other_error") for each in rewards]
    return [
        Sample(Prompt({}, [1]), Rollout([5] * tokens, [0.0] * tokens, "stop"), Answer("", 0), each) for each in grades
    ]


SAME, DIFFERENT = group(1.0, 1.0), group(0.0, 1.0)


@pytest.mark.parametrize(
    ("rounds", "refills"),
    [
        ([[DIFFERENT, DIFFERENT], [DIFFERENT, SAME]], 0),
        ([[DIFFERENT, SAME], [SAME, DIFFERENT]], 1),
        ([[SAME, SAME], [SAME, DIFFERENT], [SAME, SAME], [SAME, SAME]], 3),
    ],
)
def test_further_prompts_are_sampled_until_there_are_enough_that_differ(rounds: list[Groups], refills: int) -> None:
    sampled = filtering.refilled(rounds[0], hyperparameters(), lambda number: rounds[number])
    assert len(sampled) == 2 * (1 + refills)
    assert filtering.numbers(sampled, 2, hyperparameters())["refills"] == refills


def test_the_first_that_differ_are_kept_and_no_more_than_a_step_has() -> None:
    others = [group(0.0, 0.5), group(0.25, 0.5)]
    assert filtering.kept([SAME, others[0], DIFFERENT, others[1]], 2, hyperparameters()) == [others[0], DIFFERENT]
    assert filtering.kept([SAME, others[0]], 2, hyperparameters()) == [others[0]]
    assert filtering.kept([SAME, SAME, SAME], 2, hyperparameters()) == [SAME, SAME]


def test_answers_without_a_reward_are_no_difference_and_what_length_costs_is_one() -> None:
    assert not filtering.differs(group(None, 1.0, 1.0), hyperparameters())
    assert not filtering.differs(group(None, None), hyperparameters())
    mixed = [*group(1.0), *group(1.0, tokens=4)]
    assert not filtering.differs(mixed, hyperparameters())
    assert filtering.differs(mixed, hyperparameters(overlong_buffer=2))


@pytest.mark.parametrize("settings", [{}, {"max_staleness": 1}], ids=["on policy", "one step ahead"])
def test_a_filtered_run_learns_from_full_steps_and_resumes_bit_for_bit(
    make_spec: MakeSpec, execute: Execute, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    asked = {"grader": LIKE, "n_steps": 4, "eval_interval": 1, "filter_groups": True, "max_refills": 16} | settings
    asked |= {"group_size": 2, "n_epochs": 2, "learning_rate": 1e-4}
    learned: list[int] = []
    trainable = batch.trainable

    def counted(groups: Any, h: ResolvedHyperparameters) -> Any:
        learned.append(len(groups))
        assert all(filtering.differs(each, h) for each in groups)
        return trainable(groups, h)

    monkeypatch.setattr(batch, "trainable", counted)
    code, whole = execute(make_spec("whole", **asked))
    told = {step: data for step, data in whole.metrics().items() if step}
    assert (code, learned) == (ExitCode.DONE, [4, 4, 4, 4])
    assert any(data["troll"]["refills"] > 0 for data in told.values())
    for data in told.values():
        # Of all that was sampled, what was left out included.
        assert data["troll"]["filtered_share"] == data["frac_reward_zero_std"]
        assert data["scores"]["train_reward_count"] == 2 * 4 * (1 + data["troll"]["refills"])

    cut, spec = killed_at(2), make_spec(**asked)
    with pytest.raises(Killed):
        execute(spec, cut)
    _, rest = execute(attempt(spec, 2, cut.checkpoints()))
    assert tiny.without_times(cut.metrics() | rest.metrics()) == tiny.without_times(whole.metrics())
    left, right = (weights(result_of(each).model_path) for each in (whole, rest))
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("grader", "refills"), [(LIKE, 1), (UNREADABLE, 4)], ids=["refills", "answers at fault"])
def test_a_step_that_was_not_evaluated_yet_is_gone_on_with_whole(
    make_spec: MakeSpec, execute: Execute, monkeypatch: pytest.MonkeyPatch, grader: dict[str, Any], refills: int
) -> None:
    """A grader that goes away during the evaluation leaves a checkpoint with all answers and what each has earned."""
    from workers.training import reinforcement
    from workers.training.sampling.patience import GraderAwayError

    asked = {"grader": grader, "n_steps": 1, "filter_groups": True, "max_refills": 4, "group_size": 2}
    _, whole = execute(make_spec("whole", **asked))
    assert whole.metrics()[1]["troll"]["refills"] >= refills
    evaluate = reinforcement.evaluate

    def away(job: reinforcement.Run) -> reinforcement.Evaluated:
        if job.trainer.step:
            raise GraderAwayError("It does not answer.")
        return evaluate(job)

    spec = make_spec(**asked)
    with monkeypatch.context() as patched:
        patched.setattr(reinforcement, "evaluate", away)
        code, first = execute(spec)
    assert code == ExitCode.GRADER_AWAY
    _, second = execute(attempt(spec, 2, first.checkpoints()))
    assert tiny.without_times(second.metrics())[1] == tiny.without_times(whole.metrics())[1]
