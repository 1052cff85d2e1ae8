"""Grading beside sampling gives what grading afterwards gives, hides its time, and fails as it would alone."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Self

import pytest

from service.graders.schemas import parse_grader
from tests.workers.training import tiny
from workers import graders
from workers.answers import AnswerReader
from workers.data.prompts import Prompt
from workers.demo import make_tokenizer
from workers.errors import RunError
from workers.graders import Grade, GraderSample, JailError
from workers.rollouts.engine import EngineRequest, NonFiniteLogitsError, Rollout, RolloutEngine, Sampling
from workers.rollouts.transformers import TransformersEngine
from workers.training.data.batch import Sample
from workers.training.sampling.collection import Collection, Grading, grade, staleness
from workers.wire import ExitCode

SAMPLING = Sampling(1.0, 12, seed=3)
PATIENCE = 30


@pytest.fixture(scope="module")
def thread() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture(scope="module")
def reader() -> AnswerReader:
    return AnswerReader(make_tokenizer())


def prompts(number: int) -> list[Prompt]:
    return [Prompt({"answer": "12"}, [5 + i, 6, 7]) for i in range(number)]


class Scripted(RolloutEngine):
    """An engine whose groups are those that ``script`` yields."""

    def __init__(self, script: Callable[[], Iterator[int]]) -> None:
        self._script = script

    @classmethod
    def of_job(cls, request: EngineRequest) -> Self:
        raise AssertionError("no job asks for it")

    def push(self, policy: Any, probes: Any) -> None:
        raise AssertionError("nothing is pushed to it")

    def stream(
        self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling
    ) -> Generator[tuple[int, list[Rollout]]]:
        for number in self._script():
            yield number, [Rollout([8, 9], [-0.5, -0.5], "length")] * samples

    def extend(self, begun: Any, temperature: float, grammar: Any = None) -> Generator[tuple[int, Rollout]]:
        raise AssertionError("no answer of it is unfinished")


class Steered:
    """A grader that notes the sizes of its batches and goes on only when it may."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.entered, self.may_go_on = threading.Event(), threading.Event()

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        self.sizes.append(len(samples))
        self.entered.set()
        assert self.may_go_on.wait(PATIENCE)
        return [Grade(1.0)] * len(samples)


class Fixed:
    def __init__(self, *grades: Grade) -> None:
        self.grades = list(grades)

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        return [self.grades.pop(0) for _ in samples]


class Broken:
    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        raise JailError("no namespaces here")


def test_what_is_collected_is_what_grading_afterwards_gives(reader: AnswerReader, thread: Executor) -> None:
    engine = TransformersEngine(tiny.model("qwen3"), (1, 6, 9, 12), tiny.CONTEXT)
    grader = graders.build(parse_grader(tiny.CLOSE, "grader"))
    asked = prompts(8)
    collection = Collection(asked, Grading(grader, reader, thread=thread))
    collection.sample(engine, 3, SAMPLING)
    groups = engine.generate([prompt.token_ids for prompt in asked], 3, SAMPLING)
    assert collection.result() == grade(Grading(grader, reader, thread=thread), asked, groups)


def test_groups_are_graded_while_others_are_sampled_and_the_next_batch_is_what_came_meanwhile(
    reader: AnswerReader, thread: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    grader, now = Steered(), [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("workers.training.sampling.collection.time", clock)

    def script() -> Iterator[int]:
        yield 4
        assert grader.entered.wait(PATIENCE), "nothing was graded while the engine sampled"
        yield from (2, 0, 3)
        now[0] += 5
        grader.may_go_on.set()
        yield 1

    collection = Collection(prompts(5), Grading(grader, reader, thread=thread))
    collection.sample(Scripted(script), 2, SAMPLING)
    samples = collection.result()
    assert [group[0].prompt.token_ids[0] for group in samples] == [5, 6, 7, 8, 9]
    assert grader.sizes[0] == 2
    assert grader.sizes[1] in (6, 8)
    assert collection.grading_hidden == 5


def test_a_grader_whose_batches_cost_gets_no_small_ones(reader: AnswerReader, thread: Executor) -> None:
    grader = Steered()
    grader.may_go_on.set()
    grading = Grading(grader, reader, batch_size=5, thread=thread)
    collection = Collection(prompts(7), grading)
    collection.sample(Scripted(lambda: iter(range(7))), 2, SAMPLING)
    collection.result()
    *full, last = grader.sizes
    assert sum(grader.sizes) == 14
    assert all(size >= 6 for size in full)
    assert last >= 2


@pytest.mark.parametrize(
    ("grader", "size"),
    [
        (tiny.EXACT, 1),
        ({"type": "http", "name": "own", "url": "https://scores.example.com"}, 64),
        (
            {
                "type": "multi",
                "graders": {
                    "exact": tiny.EXACT,
                    "own": {"type": "python", "name": "own", "source": "def grade(sample, item):\n    return 1\n"},
                },
                "calculate_output": "exact + own",
            },
            16,
        ),
    ],
)
def test_graders_say_how_large_their_batches_should_be(grader: dict[str, Any], size: int) -> None:
    assert graders.batch_size(parse_grader(grader, "grader")) == size


def test_a_grader_that_breaks_ends_the_sampling_with_its_error(reader: AnswerReader, thread: Executor) -> None:
    yielded = 0
    tried = threading.Event()

    class Noticed(Broken):
        def grade(self, samples: list[GraderSample]) -> list[Grade]:
            tried.set()
            return super().grade(samples)

    def script() -> Iterator[int]:
        nonlocal yielded
        for number in range(1000):
            yielded += 1
            yield number
            assert tried.wait(PATIENCE)
            thread.submit(lambda: None).result()  # the grading has ended

    collection = Collection(prompts(1000), Grading(Noticed(), reader, thread=thread))
    collection.sample(Scripted(script), 2, SAMPLING)
    assert yielded == 2
    with pytest.raises(JailError, match="no namespaces"):
        collection.result()


def test_an_engine_that_breaks_leaves_the_thread_to_the_next(reader: AnswerReader, thread: Executor) -> None:
    def script() -> Iterator[int]:
        yield 0
        raise NonFiniteLogitsError("The model's logits are NaN or infinite.")

    grader = Fixed(*[Grade(1.0)] * 8)
    broken = Collection(prompts(2), Grading(grader, reader, thread=thread))
    with pytest.raises(NonFiniteLogitsError):
        broken.sample(Scripted(script), 2, SAMPLING)
    following = Collection(prompts(2), Grading(Fixed(*[Grade(1.0)] * 4), reader, thread=thread))
    following.sample(Scripted(lambda: iter((1, 0))), 2, SAMPLING)
    assert len(following.result()) == 2


def test_answers_older_than_allowed_are_not_trained_on(reader: AnswerReader, thread: Executor) -> None:
    samples = collected(reader, thread, Grade(1.0), Grade(0.0))
    told = staleness(samples, version=1, bound=1)
    assert told == {"staleness_mean": 1.0, "staleness_max": 1.0, "partial_rollout_fraction": 0.0}
    with pytest.raises(RunError, match="sampled 2 steps ago") as caught:
        staleness(samples, version=2, bound=1)
    assert caught.value.exit_code == ExitCode.BUG


def collected(reader: AnswerReader, thread: Executor, *grades: Grade) -> list[list[Sample]]:
    collection = Collection(prompts(1), Grading(Fixed(*grades), reader, thread=thread))
    collection.sample(Scripted(lambda: iter((0,))), len(grades), SAMPLING)
    return collection.result()


def test_a_grader_that_fails_on_most_samples_ends_the_run(reader: AnswerReader, thread: Executor) -> None:
    failed = Grade(None, error="other_error", detail="no such field")
    with pytest.raises(RunError, match=r"2 of 3 samples.*other_error: no such field") as caught:
        collected(reader, thread, failed, Grade(1.0), failed)
    assert caught.value.exit_code == ExitCode.GRADER_ERROR


def test_answers_that_cannot_be_read_do_not_end_the_run(reader: AnswerReader, thread: Executor) -> None:
    unreadable = Grade(None, error="sample_parse_error", sample_at_fault=True)
    raised = Grade(None, error="python_grader_runtime_error", raised=True)
    (samples,) = collected(reader, thread, unreadable, unreadable, raised)
    assert all(sample.grade.earns_least for sample in samples)
