"""Which models may read answers that share rows: those in which no answer sees another, whatever the weights' dtype."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from tests.workers.training import tiny
from workers.demo import make_tokenizer
from workers.modeling import model_folder
from workers.modeling.policy import Policy
from workers.modeling.rows import Rows
from workers.modeling.sharing import UNBOUNDED, longest_shared

_PLAIN = tiny.plain(len(make_tokenizer()))
_SMALL_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
CONFIGS: dict[str, transformers.PreTrainedConfig] = {
    "qwen3_moe": transformers.Qwen3MoeConfig(**_PLAIN, **_EXPERTS, head_dim=8, decoder_sparse_step=1),
    "lfm2": transformers.Lfm2Config(**_PLAIN, full_attn_idxs=[1], block_multiple_of=8),
    "falcon_h1": transformers.FalconH1Config(**_PLAIN, **_SMALL_MAMBA, mamba_d_ssm=64),
    "qwen3_next": transformers.Qwen3NextConfig(
        **_PLAIN, **_EXPERTS, **_LINEAR, head_dim=8, shared_expert_intermediate_size=32
    ),
}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str, torch.dtype], Policy]:
    def load(family: str, dtype: torch.dtype) -> Policy:
        if family in CONFIGS:
            # The small weights that a model begins with, through which little leaks: the hardest to see in bfloat16.
            torch.manual_seed(0)
            transformers.AutoModelForCausalLM.from_config(CONFIGS[family], dtype=dtype).save_pretrained(tmp_path)
            make_tokenizer().save_pretrained(tmp_path)
        else:
            tiny.save(tmp_path, family)
        model, tokenizer = model_folder.read(tmp_path, dtype)
        return Policy(tmp_path, model.eval(), tokenizer)

    return load


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "longest"),
    [("llama", UNBOUNDED), ("qwen3", UNBOUNDED), ("gpt2", UNBOUNDED), ("qwen3_moe", UNBOUNDED), ("gemma2", 6)],
)
def test_attention_shares_rows_up_to_its_window(
    family: str, longest: int, dtype: torch.dtype, make: Callable[[str, torch.dtype], Policy]
) -> None:
    assert make(family, dtype).longest_shared == longest


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["mamba", "recurrent_gemma", "lfm2", "falcon_h1", "qwen3_next"])
def test_what_carries_a_state_from_token_to_token_shares_none(
    family: str, dtype: torch.dtype, make: Callable[[str, torch.dtype], Policy]
) -> None:
    assert make(family, dtype).longest_shared == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_leak_that_rounding_hides_is_found(dtype: torch.dtype, make: Callable[[str, torch.dtype], Policy]) -> None:
    loaded = make("llama", dtype)

    def leaking(batch: Rows) -> torch.Tensor:
        states = loaded.hidden(batch)
        return states + 1e-6 * states.roll(4, 0) if batch.layout is not None else states

    assert longest_shared(loaded.model, loaded.hidden) == UNBOUNDED
    assert longest_shared(loaded.model, leaking) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_with_positions_of_its_own_shares_none(
    dtype: torch.dtype, make: Callable[[str, torch.dtype], Policy]
) -> None:
    loaded = make("llama", dtype)

    def overlooking(batch: Rows) -> torch.Tensor:
        mask = {} if batch.layout is None else {"attention_mask": batch.layout.attention_mask()}
        states: torch.Tensor = loaded.backbone(batch.input_ids, **mask)
        return states.flatten(0, 1)[batch.positions]

    assert longest_shared(loaded.model, overlooking) == 0
