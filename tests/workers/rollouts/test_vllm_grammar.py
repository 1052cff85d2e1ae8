"""vLLM for real, on the CPU: answers held to a schema, by the same masks that the trainer asks for."""

import json
from pathlib import Path

import pytest
import torch

from tests.workers.rollouts.test_grammar import (
    EOS,
    OTHER_END,
    PROMPTS,
    SCHEMA,
    SIZE,
    TOKENIZER,
    grammar,
    ids,
    log_probs_among,
)
from tests.workers.serving import tiny
from workers.rollouts.engine import Sampling
from workers.rollouts.top_log_probs import sparse_rows
from workers.rollouts.vllm import EngineSettings, VLLMEngine


def test_answers_fit_the_schema_and_are_as_likely_as_among_what_it_allows(tmp_path: Path) -> None:
    ends = (EOS, OTHER_END)
    held, number = grammar(stop_ids=ends), grammar({"type": "integer"}, ends)
    settings = EngineSettings(256, "float32", top_log_probs=16, cpu_cache_bytes=16 << 20, structured=True)
    engine = VLLMEngine(tiny.save(tmp_path / "model"), ends, settings)
    try:
        groups = engine.generate(PROMPTS, 4, Sampling(0.7, 120, seed=1, grammar=held))
        ended = 0
        for prompt, group in zip(PROMPTS, groups, strict=True):
            for rollout in group:
                expected = log_probs_among(held, prompt, rollout.token_ids, 0.7)
                torch.testing.assert_close(torch.tensor(rollout.log_probs), expected, atol=1e-4, rtol=0)
                if rollout.finish_reason == "stop":
                    ended += 1
                    said = json.loads(TOKENIZER.decode(rollout.token_ids, skip_special_tokens=True))
                    assert said["size"] in SCHEMA["properties"]["size"]["enum"]
        assert ended
        # As the old policy, what the sampler reports is the policy among what was allowed.
        rows = sparse_rows([rollout for group in groups for rollout in group], SIZE)
        reported = torch.tensor([value for group in groups for rollout in group for value in rollout.log_probs])
        torch.testing.assert_close(rows.token_log_probs, reported)
        assert bool(rows.log_probs[rows.ids >= 0].isfinite().all())
        # Either end may follow a number: both do, of a model that likes them alike.
        numbers = engine.generate(PROMPTS, 24, Sampling(1.5, 12, seed=2, grammar=number))
        assert {rollout.token_ids[-1] for group in numbers for rollout in group if rollout.finish_reason == "stop"} == {
            *ends
        }
        plain = engine.generate(PROMPTS[:1], 1, Sampling(1.0, 20, seed=3))[0][0]
        assert plain.token_ids != groups[0][0].token_ids
        with pytest.raises(ValueError, match="reason first"):
            engine.generate([ids("?<think>")], 1, Sampling(1.0, 20, seed=3, grammar=held))
    finally:
        engine.close()
