"""Whole weights of each model family pushed into vLLM: the probe agrees with the trainer's forward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from workers.rollouts.engine import Sampling
from workers.rollouts.probe import compare, tolerance_for
from workers.rollouts.vllm import EngineSettings, VLLMEngine

CONTEXT = 48
PROBE = [[5, 6, 7, 100, 200, 33, 12], [9, 8, 301, 4]]
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True},
    "llama": {"tie_word_embeddings": False},
    "smollm3": {"tie_word_embeddings": True, "no_rope_layers": [1, 0]},
    "apertus": {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
}


def model(family: str, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **FAMILIES[family],
    )
    created = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in created.named_parameters():
            if "bias" in name or "norm" in name:  # which start as zeros and ones, alike in every model
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return created


@torch.no_grad()
def scores(of: PreTrainedModel) -> list[list[float]]:
    rows = []
    for ids in PROBE:
        log_probs = of(torch.tensor([ids])).logits[0].float().log_softmax(-1)[:-1]
        rows.append(log_probs.gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1).tolist())
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_agrees_at_the_start_and_after_a_push(family: str, tmp_path: Path) -> None:
    first, second = model(family, seed=0), model(family, seed=1)
    first.save_pretrained(tmp_path)
    tolerance = tolerance_for("float32", family)
    engine = VLLMEngine(tmp_path, [1], EngineSettings(CONTEXT, "float32", cpu_cache_bytes=16 << 20))
    try:
        compare(engine.score(PROBE), scores(first), tolerance)
        engine.sync(second.named_parameters())
        compare(engine.score(PROBE), scores(second), tolerance)
        engine.sync(first.state_dict().items())
        compare(engine.score(PROBE), scores(first), tolerance)
        ((rollout,),) = engine.generate([PROBE[0]], 1, Sampling(temperature=1.0, max_tokens=4, seed=0))
        assert rollout.version == 2
    finally:
        engine.close()
