"""Answers in a checkpoint come back as they were."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from workers.answers import AnswerReader
from workers.data.prompts import Prompt
from workers.demo import make_tokenizer
from workers.graders import Grade, TokenUsage
from workers.rollouts.engine import Rollout
from workers.rollouts.top_log_probs import TopLogProbs
from workers.training.data.batch import Sample
from workers.training.sampling import prefetched

GRADES = [
    Grade(
        0.1 + 0.2,
        {"exact": 1.0, "close": 1 / 3},
        usage={"judge": TokenUsage(3, 4, 1)},
        sub_usage={"exact": TokenUsage(3, 4, 1)},
    ),
    Grade(None, error="sample_parse_error", detail="not JSON ☺", sample_at_fault=True),
    Grade(1.0, sub_errors={"exact": "other_error"}),
]


@pytest.mark.parametrize("top", [False, True])
def test_answers_are_read_as_they_were_written(tmp_path: Path, top: bool) -> None:
    reader, prompts = AnswerReader(make_tokenizer()), [Prompt({"answer": "1"}, [5, 6]), Prompt({"answer": "2"}, [7])]
    rollouts = [
        Rollout([8, 9, 1], np.array([-0.1, -2 / 3, -1e-7], np.float32).tolist(), "stop", version=7),
        Rollout([10], [-3.0], "length", version=6),
        Rollout([11, 12], [-0.5, -0.25], "length", version=7),
    ]
    if top:
        rng = np.random.default_rng(0)
        rollouts = [
            replace(
                rollout,
                top=TopLogProbs(
                    rng.integers(0, 99, (len(rollout.token_ids), 4), dtype=np.int32),
                    rng.standard_normal((len(rollout.token_ids), 4), dtype=np.float32),
                ),
            )
            for rollout in rollouts
        ]
    asked = [prompts[0], prompts[0], prompts[1]]
    answers = reader.read([prompt.token_ids for prompt in asked], [rollout.token_ids for rollout in rollouts])
    samples = [Sample(*parts) for parts in zip(asked, rollouts, answers, GRADES, strict=True)]
    prefetched.write(tmp_path, [samples[:2], samples[2:]], version=8)
    groups = prefetched.read(tmp_path, prompts, reader, version=8)

    assert [len(group) for group in groups] == [2, 1]
    read = [sample for group in groups for sample in group]
    assert [(each.prompt, each.answer, each.grade) for each in read] == [
        (each.prompt, each.answer, each.grade) for each in samples
    ]
    for ours, theirs in zip((each.rollout for each in read), rollouts, strict=True):
        assert replace(ours, top=None) == replace(theirs, top=None)
        assert (ours.top is not None) == top
        if ours.top and theirs.top:
            assert np.array_equal(ours.top.ids, theirs.top.ids)
            assert np.array_equal(ours.top.log_probs, theirs.top.log_probs)


def test_how_old_answers_are_survives_an_engine_that_counts_anew(tmp_path: Path) -> None:
    reader, prompt = AnswerReader(make_tokenizer()), Prompt({}, [5])
    rollout = Rollout([8], [-0.5], "length", version=41)
    (answer,) = reader.read([[5]], [[8]])
    prefetched.write(tmp_path, [[Sample(prompt, rollout, answer, GRADES[0])]], version=42)
    ((sample,),) = prefetched.read(tmp_path, [prompt], reader, version=1)
    assert sample.rollout.version == 0
