"""Recorded answers are repeated, as likely as the model finds them."""

import json
from pathlib import Path

import pytest
import torch

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from tests.workers.training import tiny
from workers.errors import RunError
from workers.modeling import policy
from workers.rollouts.engine import Begun, EngineRequest, Sampling
from workers.rollouts.replay import ReplayEngine


def made(folder: Path) -> ReplayEngine:
    saved = tiny.save(folder / "model")
    line = {"prompt": [5, 6, 7], "answers": [[8, 9, 1], [8, 10, 11, 12]]}
    (saved / "recorded.jsonl").write_text(json.dumps(line))
    loaded = policy.load(saved, torch.device("cpu"))
    asked = resolve(Hyperparameters(rollout_engine="replay"), training_rows=8)
    return ReplayEngine.of_job(EngineRequest(loaded, asked, [[5, 6, 7]], 4))


def test_answers_are_the_recorded_ones_and_as_likely_as_the_model_finds_them(tmp_path: Path) -> None:
    engine = made(tmp_path)
    ((first, second, third),) = engine.generate([[5, 6, 7]], 3, Sampling(1.0, 4, seed=1))
    assert [each.token_ids for each in (first, second, third)] == [[8, 9, 1], [8, 10, 11, 12], [8, 9, 1]]
    assert (first.finish_reason, second.finish_reason) == ("stop", "length")
    with torch.no_grad():
        expected = tiny.model("qwen3")(torch.tensor([[5, 6, 7, 8, 9, 1]])).logits[0].log_softmax(-1)
    assert first.log_probs == pytest.approx(expected[[2, 3, 4], [8, 9, 1]].tolist(), abs=1e-5)


def test_an_answer_goes_on_as_it_was_recorded(tmp_path: Path) -> None:
    ((_, piece),) = made(tmp_path).extend([Begun([5, 6, 7], [8, 10], 1, seed=3)], 1.0)
    assert (piece.token_ids, piece.finish_reason, len(piece.log_probs)) == ([11], "length", 1)


def test_what_was_not_recorded_cannot_be_sampled(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no answer to a prompt"):
        made(tmp_path).generate([[5]], 1, Sampling(1.0, 4, seed=1))
