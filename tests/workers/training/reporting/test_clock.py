"""Where a step's time goes, and what a run was at when something failed."""

import pytest

from workers.training.reporting.clock import Clock


def test_what_fails_leaves_its_phase_behind() -> None:
    clock = Clock()
    with pytest.raises(ValueError), clock("training"), clock("old_log_probs"):
        raise ValueError
    assert clock.phase == "old_log_probs"


def test_a_failure_that_was_caught_is_forgotten() -> None:
    clock = Clock()
    with pytest.raises(ValueError), clock("grading"):
        raise ValueError
    with clock("saving"):
        pass
    assert clock.phase == "saving"
