"""``math_verify``: equality of mathematical objects, in processes that can be killed."""

import psutil
import pytest

from service.graders.schemas import parse_grader
from workers.graders import Grade, Grader, GraderSample, build, math_verify

RAW = {"type": "math_verify", "reference": "{{item.answer}}"}


@pytest.fixture(scope="module")
def grader() -> Grader:
    return build(parse_grader(RAW, "grader"))


def grade(grader: Grader, reference: object, output: str) -> Grade:
    (only,) = grader.grade([GraderSample({"answer": reference}, output)])
    return only


def test_what_was_read_is_the_same_for_equal_answers(grader: Grader) -> None:
    read = [
        grade(grader, "1/2", text).extracted for text in ("\\boxed{1/2}", "It is 0.5.", "$\\frac{2}{4}$", "3", "none")
    ]
    assert read[0] is not None
    assert (read[:3], read[4]) == ([read[0]] * 3, None)
    assert read[3] not in (None, read[0])


@pytest.mark.parametrize(
    ("reference", "output"),
    [
        ("46", "The answer is 46."),
        (46, "so it is \\boxed{46}"),
        ("\\frac{1}{2}", "so \\boxed{0.5}"),
        ("1/2", "$\\frac{2}{4}$"),
        ("$\\frac{1}{2}$", "$0.5$"),
        ("x^2+1", "$1+x^2$"),
        ("\\{1,2\\}", "$\\{2,1\\}$"),
        ("1,234", "\\boxed{1234}"),
    ],
)
def test_equal(grader: Grader, reference: object, output: str) -> None:
    assert grade(grader, reference, output) == Grade(1.0)


@pytest.mark.parametrize(
    ("reference", "output"),
    [("46", "-46"), ("46", "I do not know"), ("46", ""), ("\\frac{1}{2}", "1"), ("46", "\\boxed{46} or \\boxed{47}")],
)
def test_different(grader: Grader, reference: object, output: str) -> None:
    assert grade(grader, reference, output) == Grade(0.0)


def test_a_reference_that_is_no_mathematics_is_not_the_fault_of_the_sample(grader: Grader) -> None:
    result = grade(grader, "", "46")
    assert (result.reward, result.error, result.sample_at_fault) == (None, "other_error", False)


def test_an_endless_comparison_is_killed_and_the_others_are_graded(
    grader: Grader, monkeypatch: pytest.MonkeyPatch
) -> None:
    grade(grader, "1", "1")  # so that no process starts under the short limit
    monkeypatch.setattr(math_verify, "SECONDS", 1.0)
    outputs = ["1", "$9^{9^{9^{9}}}$", "1", "2", "1"]
    grades = grader.grade([GraderSample({"answer": "1"}, output) for output in outputs])
    assert [each.reward for each in grades] == [1.0, None, 1.0, 0.0, 1.0]
    assert (grades[1].error, grades[1].sample_at_fault) == ("sample_parse_error", True)


def test_a_reference_that_takes_for_ever_is_not_the_fault_of_the_sample(
    grader: Grader, monkeypatch: pytest.MonkeyPatch
) -> None:
    grade(grader, "1", "1")
    monkeypatch.setattr(math_verify, "SECONDS", 1.0)
    result = grade(grader, "\\frac{1}{" * 3000 + "}" * 3000, "1")
    assert (result.reward, result.error, result.sample_at_fault) == (None, "other_error", False)


def test_processes_are_kept_between_batches_and_end_with_the_grader() -> None:
    own = build(parse_grader(RAW, "grader"))
    before = set(psutil.Process().children())
    grade(own, "1", "1")
    started = set(psutil.Process().children()) - before
    grade(own, "1", "1")
    assert set(psutil.Process().children()) - before - started == set()
    assert started
    del own
    assert not [each for each in started if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
