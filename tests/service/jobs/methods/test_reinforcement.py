"""What a reinforcement job is run with where its model leaves less room for answers than it asked for."""

from service.graders.schemas import parse_grader
from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from service.jobs.methods.reinforcement import Reinforcement
from tests import factories


def test_the_part_of_an_answer_over_which_its_reward_falls_stays_the_same_part() -> None:
    h = resolve(Hyperparameters(max_completion_tokens=1024, overlong_buffer=512), training_rows=8)
    method = Reinforcement(grader=parse_grader(factories.GRADER, "grader"), hyperparameters=h)
    shorter = method.with_answers_of(256).hyperparameters
    assert (shorter.max_completion_tokens, shorter.overlong_buffer) == (256, 128)
    assert method.with_answers_of(1024).hyperparameters == h
