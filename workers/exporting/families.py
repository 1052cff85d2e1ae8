"""The families of models that a GGUF file can hold here: how llama.cpp calls them, and what it does otherwise.

Each is what llama.cpp computes and no more: a configuration that it would compute differently is refused.

permuted    llama.cpp rotates neighbours in a head, transformers its halves: rows of q and k change places
shifted     llama.cpp multiplies by a norm's weight, transformers by one more than it
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, RopeScalingType
from gguf.gguf_writer import GGUFWriter
from torch import Tensor

from workers.modeling.model_folder import unusable

Check = Callable[[Any], str | None]
"""Of a configuration: what llama.cpp would do otherwise; None where it does the same."""


@dataclass(frozen=True)
class Family:
    arch: MODEL_ARCH
    permuted: bool = False
    shifted: bool = False
    activations: tuple[str, ...] = ("silu",)
    ropes: tuple[str, ...] = ("default", "linear", "yarn")
    """The kinds of rotary positions that are the same in both."""
    window: int = 0
    """Every how many layers one attends to all, the others through a window; 0: all attend to all."""
    check: Check = lambda config: None


def _gemma2(config: Any) -> str | None:
    if not config.attn_logit_softcapping or not config.final_logit_softcapping:
        return "does not cap its logits"
    return _query_scale(config, layers_of_27b=46)


def _gemma3(config: Any) -> str | None:
    if config.attn_logit_softcapping:
        return "caps the logits of its attention"
    return _query_scale(config, layers_of_27b=62)


def _query_scale(config: Any, layers_of_27b: int) -> str | None:
    largest = config.num_hidden_layers == layers_of_27b
    scale = config.hidden_size // config.num_attention_heads if largest else config.head_dim
    return None if config.query_pre_attn_scalar == scale else f"scales queries by {config.query_pre_attn_scalar}"


def _qwen3_moe(config: Any) -> str | None:
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        return "has layers without experts"
    return None if config.norm_topk_prob else "does not normalize the weights of its experts"


def _smollm3(config: Any) -> str | None:
    every_fourth = [int((layer + 1) % 4 != 0) for layer in range(config.num_hidden_layers)]
    return None if list(config.no_rope_layers) == every_fourth else "leaves other layers than each fourth unrotated"


def _phi3(config: Any) -> str | None:
    same = config.head_dim * config.num_attention_heads == config.hidden_size if _given(config, "head_dim") else True
    return None if same else "has heads of another size"


YARN_OF_OTHERS = {"attention_factor", "mscale", "mscale_all_dim"}
"""Settings of stretched positions without which both sides compute the same."""
GELU = ("gelu_pytorch_tanh",)
FAMILIES: dict[str, Family] = {
    "llama": Family(MODEL_ARCH.LLAMA, permuted=True, ropes=("default", "linear", "yarn", "llama3")),
    "mistral": Family(MODEL_ARCH.LLAMA, permuted=True),
    "qwen2": Family(MODEL_ARCH.QWEN2),
    "qwen3": Family(MODEL_ARCH.QWEN3),
    "qwen3_moe": Family(MODEL_ARCH.QWEN3MOE, check=_qwen3_moe),
    "smollm3": Family(MODEL_ARCH.SMOLLM3, permuted=True, check=_smollm3),
    "gemma": Family(MODEL_ARCH.GEMMA, shifted=True, activations=GELU, ropes=("default",)),
    "gemma2": Family(MODEL_ARCH.GEMMA2, shifted=True, activations=GELU, ropes=("default",), window=2, check=_gemma2),
    "gemma3_text": Family(
        MODEL_ARCH.GEMMA3, shifted=True, activations=GELU, ropes=("default", "linear"), window=6, check=_gemma3
    ),
    "phi3": Family(MODEL_ARCH.PHI3, ropes=("default", "longrope"), check=_phi3),
}
"""By ``model_type``, as ``service.contracts.export_formats`` names them."""


def of(config: Any) -> Family:
    """The family of a configuration. Raises ``RunError`` for what llama.cpp would compute differently."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise unusable(f"is of the family '{config.model_type}'. GGUF files are made of these: {known}")
    activation = _given(config, "hidden_activation") or _given(config, "hidden_act")
    ropes = {rope["rope_type"] for rope in _ropes(config).values()}
    wrong = family.check(config)
    if activation not in family.activations:
        wrong = f"has the activation '{activation}'"
    elif not ropes <= set(family.ropes):
        wrong = f"has rotary positions of the kind '{min(ropes - set(family.ropes))}'"
    elif any(
        rope["rope_type"] == "yarn" and YARN_OF_OTHERS & {k for k in rope if rope[k]}
        for rope in _ropes(config).values()
    ):
        wrong = "stretches rotary positions by factors of its own"
    elif family.window and not _is_alternating(config, family.window):
        wrong = f"attends to all in other layers than every {family.window}th"
    if wrong is not None:
        raise unusable(
            f"{wrong}, which llama.cpp computes differently for '{config.model_type}': no GGUF is made of it"
        )
    return family


def describe(writer: GGUFWriter, config: Any, family: Family, rows: int) -> None:
    """Write what llama.cpp has to know of the architecture. ``rows`` is how many embeddings there are."""
    heads, head_dim = config.num_attention_heads, head_size(config)
    ropes, context = _ropes(config), config.max_position_embeddings
    if _given(config, "sliding_window") and not family.window:
        # It attends to all that it is given, and is given no more than it was trained to attend to.
        context = min(context, config.sliding_window)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(_given(config, "num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(rows)
    full = ropes["full_attention"]
    writer.add_rope_dimension_count(int(head_dim * (full.get("partial_rotary_factor") or 1.0)))
    writer.add_rope_freq_base(full["rope_theta"])
    _describe_rope(writer, full, config)
    if family.window:
        writer.add_sliding_window(config.sliding_window)
        if family.arch is MODEL_ARCH.GEMMA3:
            writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    elif family.arch is MODEL_ARCH.PHI3:
        # Without it, older readers take the window of the family's first model.
        writer.add_sliding_window(0)
    if family.arch is MODEL_ARCH.GEMMA2:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if family.arch in (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3) and config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if family.arch is MODEL_ARCH.QWEN3MOE:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _describe_rope(writer: GGUFWriter, rope: dict[str, Any], config: Any) -> None:
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(_original_context(rope, config))
        if rope.get("beta_fast"):
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        if rope.get("beta_slow"):
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    elif rope["rope_type"] == "longrope":
        original = _original_context(rope, config)
        scale = config.max_position_embeddings / original
        usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(rope.get("attention_factor") or usual)


def rope_tensors(config: Any) -> dict[str, Tensor]:
    """What rotary positions are divided by, where that is not one factor, by its name in the file, in float32."""
    rope = _ropes(config)["full_attention"]
    if rope["rope_type"] == "longrope":
        factors = {"rope_factors_long": rope["long_factor"], "rope_factors_short": rope["short_factor"]}
        return {f"{name}.weight": torch.tensor(values, dtype=torch.float32) for name, values in factors.items()}
    if rope["rope_type"] != "llama3":
        return {}
    dimension = head_size(config)
    frequencies = rope["rope_theta"] ** (-torch.arange(0, dimension, 2, dtype=torch.float64) / dimension)
    turns = _original_context(rope, config) * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    # Slow ones are slowed further, fast ones are left alone, and between them it goes over smoothly.
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return {"rope_freqs.weight": (1 / ((1 - smooth) / rope["factor"] + smooth)).float()}


def permute(weight: Tensor, heads: int) -> Tensor:
    """Rows of ``weight [heads · size, …]`` so that what was half a head apart stands side by side."""
    size = weight.shape[0] // heads
    return weight.reshape(heads, 2, size // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def head_size(config: Any) -> int:
    return int(_given(config, "head_dim") or config.hidden_size // config.num_attention_heads)


def _ropes(config: Any) -> dict[str, dict[str, Any]]:
    """Rotary positions by the kind of layer; of a family with one kind, those of ``full_attention``."""
    given = config.rope_parameters
    return dict(given) if "full_attention" in given else {"full_attention": given}


def _original_context(rope: dict[str, Any], config: Any) -> int:
    given = rope.get("original_max_position_embeddings") or _given(config, "original_max_position_embeddings")
    return int(given or config.max_position_embeddings)


def _is_alternating(config: Any, every: int) -> bool:
    expected = [
        "full_attention" if (layer + 1) % every == 0 else "sliding_attention"
        for layer in range(config.num_hidden_layers)
    ]
    return list(config.layer_types) == expected


def _given(config: Any, name: str) -> Any:
    return getattr(config, name, None)
