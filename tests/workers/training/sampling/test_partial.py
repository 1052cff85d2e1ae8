"""Answers that are sampled in pieces by weights that change between them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.workers.training import tiny
from workers.answers import AnswerReader
from workers.data.prompts import Prompt
from workers.demo import make_tokenizer
from workers.graders import Grade, GraderSample
from workers.rollouts.transformers import TransformersEngine
from workers.training.sampling import prefetched
from workers.training.sampling.collection import Collection, Grading
from workers.training.sampling.partial import PartialRollouts, sample

ROOM, SAMPLES = 9, 3
PROMPTS = [Prompt({}, [5, 6, 7]), Prompt({}, [8, 9]), Prompt({}, [10, 11, 12, 13])]


class ByLength:
    """A grader whose reward tells the answer."""

    def __init__(self) -> None:
        self.asked = 0

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        self.asked += len(samples)
        return [Grade(float(len(each.output_text))) for each in samples]


@pytest.fixture
def grader() -> ByLength:
    return ByLength()


@pytest.fixture
def grading(grader: ByLength) -> Iterator[Grading]:
    with ThreadPoolExecutor(1) as thread:
        yield Grading(grader, AnswerReader(make_tokenizer()), thread=thread)


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(tiny.model("qwen3"), (1,), tiny.CONTEXT)


def begun(grading: Grading, seed: int = 3) -> PartialRollouts:
    return PartialRollouts(Collection(PROMPTS, grading), SAMPLES, [ROOM] * len(PROMPTS), seed)


def test_pieces_of_one_policy_are_as_likely_as_the_model_finds_the_whole(
    engine: TransformersEngine, grading: Grading
) -> None:
    partial = begun(grading)
    for most in (4, 4, None):
        sample(engine, [(partial, most)], 1.0, None)
    model = engine._model
    for prompt, group in zip(PROMPTS, partial.collection.result(), strict=True):
        for each in group:
            ids = torch.tensor([prompt.token_ids + each.rollout.token_ids])
            log_probs = model(ids).logits.log_softmax(-1)[0, len(prompt.token_ids) - 1 : -1]
            theirs = log_probs.gather(-1, torch.tensor(each.rollout.token_ids).unsqueeze(-1)).squeeze(-1)
            assert each.rollout.log_probs == pytest.approx(theirs.tolist(), abs=1e-4)
            assert len(each.rollout.token_ids) == ROOM or each.rollout.finish_reason == "stop"


def test_greedy_pieces_are_the_answer_in_one_go(engine: TransformersEngine, grading: Grading) -> None:
    whole, pieces = begun(grading), begun(grading)
    sample(engine, [(whole, None)], 0.0, None)
    for most in (1, 2, 3, None):
        sample(engine, [(pieces, most)], 0.0, None)
    ours, theirs = (
        [each.rollout.token_ids for group in one.collection.result() for each in group] for one in (pieces, whole)
    )
    assert ours == theirs


def test_what_is_sampled_does_not_depend_on_what_is_sampled_beside_it(
    engine: TransformersEngine, grading: Grading
) -> None:
    alone, beside, other = begun(grading), begun(grading), begun(grading, seed=4)
    for most in (2, 5, None):
        sample(engine, [(alone, most)], 1.0, None)
    sample(engine, [(other, 3)], 1.0, None)
    for most in (2, 5, None):
        sample(engine, [(other, 1), (beside, most)], 1.0, None)
    ours, theirs = (
        [each.rollout.token_ids for group in one.collection.result() for each in group] for one in (beside, alone)
    )
    assert ours == theirs
    assert len({tuple(ids) for ids in ours}) > len(PROMPTS)


def test_kept_answers_go_on_as_they_would_have(engine: TransformersEngine, grading: Grading, tmp_path: Path) -> None:
    partial = begun(grading)
    sample(engine, [(partial, 5)], 1.0, None)
    prefetched.write_ahead(tmp_path, 7, {9: partial.kept()}, engine.version)
    ((step, kept),) = prefetched.read_ahead(tmp_path, 7, engine.version).items()
    assert step == 9
    again = begun(grading)
    again.restore(kept, grading.reader)
    for one in (partial, again):
        sample(engine, [(one, 2)], 1.0, None)
        sample(engine, [(one, None)], 1.0, None)
    assert again.collection.result() == partial.collection.result()


def test_answers_that_were_graded_are_not_graded_again(
    engine: TransformersEngine, grading: Grading, grader: ByLength, tmp_path: Path
) -> None:
    partial = begun(grading)
    sample(engine, [(partial, None)], 1.0, None)
    prefetched.write_ahead(tmp_path, 1, {2: partial.kept()}, engine.version)
    asked = grader.asked
    assert asked == SAMPLES * len(PROMPTS)
    again = begun(grading)
    again.restore(prefetched.read_ahead(tmp_path, 1, engine.version)[2], grading.reader)
    assert again.collection.result() == partial.collection.result()
    assert grader.asked == asked


def test_answers_that_wait_for_weights_hold_up_no_others_grades(engine: TransformersEngine, grading: Grading) -> None:
    waiting, following = begun(grading), begun(grading)
    sample(engine, [(waiting, 2)], 1.0, None)
    sample(engine, [(following, None)], 1.0, None)
    assert len(following.collection.result()) == len(PROMPTS)


def test_an_answer_ends_where_its_room_does(engine: TransformersEngine, grading: Grading) -> None:
    partial = PartialRollouts(Collection(PROMPTS, grading), SAMPLES, [2, 5, 9], seed=1)
    for _ in range(3):
        sample(engine, [(partial, 3)], 1.0, None)
    partial.end()
    lengths = [[len(each.rollout.token_ids) for each in group] for group in partial.collection.result()]
    assert all(max(group) <= room for group, room in zip(lengths, [2, 5, 9], strict=True))
    assert partial.unfinished(None) == []
