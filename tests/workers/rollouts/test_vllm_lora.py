"""LoRA adapters handed to the vLLM engine from memory, on the CPU."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import Qwen3Config, Qwen3ForCausalLM

from workers.rollouts.engine import Sampling
from workers.rollouts.errors import EngineDiedError, StaleWeightsError
from workers.rollouts.probe import FLOAT32, WeightsOutOfSyncError, compare
from workers.rollouts.vllm import EngineSettings, VLLMEngine

VOCABULARY, CONTEXT = 320, 48
PROMPTS = [[5, 6, 7], [200, 3, 19, 44, 8, 101]]
PROBE = [[5, 6, 7, 100, 200, 33, 12], [9, 8, 301, 4]]
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SAMPLING = Sampling(temperature=0.8, max_tokens=12, seed=11)


@pytest.fixture(scope="module")
def base() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).float().eval()


@pytest.fixture(scope="module")
def peft_model(base: Qwen3ForCausalLM) -> PeftModel:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(MODULES), task_type="CAUSAL_LM")
    return get_peft_model(base, config)


@pytest.fixture(scope="module")
def engine(base: Qwen3ForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMEngine]:
    folder = tmp_path_factory.mktemp("model")
    base.save_pretrained(folder)
    settings = EngineSettings(CONTEXT, "float32", lora_rank=4, lora_modules=MODULES, cpu_cache_bytes=16 << 20)
    engine = VLLMEngine(folder, [1], settings)
    yield engine
    engine.close()


def adapt(peft_model: PeftModel, seed: int) -> dict[str, torch.Tensor]:
    """Random adapter weights, big enough to change every output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return {name: tensor.clone() for name, tensor in get_peft_model_state_dict(peft_model).items()}


def configuration(peft_model: PeftModel) -> dict[str, Any]:
    return peft_model.peft_config["default"].to_dict()


@torch.no_grad()
def scores(of: torch.nn.Module, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    rows = []
    for ids in sequences:
        log_probs = of(torch.tensor([ids])).logits[0].log_softmax(-1)[:-1]
        rows.append(log_probs.gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1).tolist())
    return rows


def test_nothing_is_sampled_before_the_first_adapter(engine: VLLMEngine) -> None:
    with pytest.raises(StaleWeightsError, match="no adapter was pushed yet"):
        engine.generate(PROMPTS, 1, SAMPLING)


def test_each_adapter_pushed_gives_the_log_probs_of_pefts_forward(engine: VLLMEngine, peft_model: PeftModel) -> None:
    for seed in (1, 2, 3):
        engine.sync_adapter(configuration(peft_model), adapt(peft_model, seed))
        compare(engine.score(PROBE), scores(peft_model, PROBE), FLOAT32)


def test_a_swap_changes_what_is_sampled(engine: VLLMEngine, peft_model: PeftModel) -> None:
    sampled = []
    for seed in (1, 2, 1):
        version = engine.sync_adapter(configuration(peft_model), adapt(peft_model, seed))
        groups = engine.generate(PROMPTS, 2, SAMPLING)
        assert {rollout.version for group in groups for rollout in group} == {version}
        sampled.append([rollout.token_ids for group in groups for rollout in group])
    assert sampled[0] != sampled[1]
    assert sampled[0] == sampled[2]


def test_a_push_leaves_the_trainers_weights_alone(engine: VLLMEngine, peft_model: PeftModel) -> None:
    expected = adapt(peft_model, 9)
    engine.sync_adapter(configuration(peft_model), get_peft_model_state_dict(peft_model))
    assert all(torch.equal(expected[name], now) for name, now in get_peft_model_state_dict(peft_model).items())


def test_sampled_log_probs_are_pefts(engine: VLLMEngine, peft_model: PeftModel) -> None:
    engine.sync_adapter(configuration(peft_model), adapt(peft_model, 4))
    for prompt, (rollout,) in zip(PROMPTS, engine.generate(PROMPTS, 1, Sampling(1.0, 12, 0)), strict=True):
        (expected,) = scores(peft_model, [[*prompt, *rollout.token_ids]])
        assert rollout.log_probs == pytest.approx(expected[len(prompt) - 1 :], abs=1e-4)


def test_the_probe_catches_an_adapter_of_the_step_before(engine: VLLMEngine, peft_model: PeftModel) -> None:
    engine.sync_adapter(configuration(peft_model), adapt(peft_model, 5))
    adapt(peft_model, 6)
    with pytest.raises(WeightsOutOfSyncError):
        compare(engine.score(PROBE), scores(peft_model, PROBE), FLOAT32, engine.version)


def test_an_adapter_for_modules_the_model_lacks_stops_sampling(engine: VLLMEngine, peft_model: PeftModel) -> None:
    tensors = {name.replace("q_proj", "qq_proj"): value for name, value in adapt(peft_model, 7).items()}
    with pytest.raises(StaleWeightsError, match="qq_proj"):
        engine.sync_adapter(configuration(peft_model), tensors)
    with pytest.raises(StaleWeightsError, match="did not complete"):
        engine.generate(PROMPTS, 1, SAMPLING)


def test_whole_weights_are_refused(engine: VLLMEngine, base: Qwen3ForCausalLM) -> None:
    with pytest.raises(ValueError, match="sync_adapter"):
        engine.sync(base.state_dict().items())


def test_an_adapter_that_was_dropped_is_never_sampled_without(engine: VLLMEngine, peft_model: PeftModel) -> None:
    version = engine.sync_adapter(configuration(peft_model), adapt(peft_model, 8))
    engine._engine.remove_lora(version)
    with pytest.raises(EngineDiedError):
        engine.generate(PROMPTS, 1, SAMPLING)
