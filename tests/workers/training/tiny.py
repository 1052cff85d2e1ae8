"""Tiny models of real architectures, runs over a handful of additions, and what a run said."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from service.jobs.hyperparameters.supervised import SupervisedHyperparameters
from service.jobs.methods.reinforcement import Reinforcement
from service.jobs.methods.supervised import Supervised
from service.jobs.spec import JobSpec, RunSpec
from workers import wire
from workers.demo import CHARACTERS, make_tokenizer
from workers.training.processes.channel import Channel

EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
CLOSE = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "fuzzy_match",
}
ROWS = [(a, b) for a in (7, 12, 140) for b in (3, 25, 308)]
CONTEXT = 48


def plain(vocabulary: int) -> dict[str, Any]:
    """What configurations of most families have in common."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    }


def _gpt2(v: int) -> transformers.PreTrainedConfig:
    return transformers.GPT2Config(vocab_size=v, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT)


def _mamba(v: int) -> transformers.PreTrainedConfig:
    return transformers.MambaConfig(vocab_size=v, hidden_size=32, num_hidden_layers=2, state_size=4)


CONFIGS: dict[str, Callable[[int], transformers.PreTrainedConfig]] = {
    "llama": lambda v: transformers.LlamaConfig(**plain(v)),
    "qwen2": lambda v: transformers.Qwen2Config(**plain(v), tie_word_embeddings=True),
    "qwen3": lambda v: transformers.Qwen3Config(**plain(v), head_dim=8, tie_word_embeddings=True),
    # Every other layer without rotary positions.
    "smollm3": lambda v: transformers.SmolLM3Config(**plain(v), no_rope_layers=[1, 0], tie_word_embeddings=True),
    "apertus": lambda v: transformers.ApertusConfig(
        **plain(v), rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    ),
    "gpt2": _gpt2,
    # Caps its logits, attends through a sliding window in every other layer.
    "gemma2": lambda v: transformers.Gemma2Config(
        **plain(v), head_dim=8, sliding_window=6, final_logit_softcapping=2.0, query_pre_attn_scalar=8
    ),
    # Keeps a recurrent state instead of a cache of keys and values.
    "mamba": _mamba,
    # Its recurrent state reads padding like any token.
    "rwkv": lambda v: transformers.RwkvConfig(
        vocab_size=v,
        hidden_size=32,
        attention_hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        context_length=CONTEXT,
    ),
}


SCALED: dict[str, Callable[[int], transformers.PreTrainedConfig]] = {
    "granite": lambda v: transformers.GraniteConfig(**plain(v), logits_scaling=4.0),
    "cohere": lambda v: transformers.CohereConfig(**plain(v), logit_scale=0.25),
    "recurrent_gemma": lambda v: transformers.RecurrentGemmaConfig(
        vocab_size=v,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        lru_width=32,
        logits_soft_cap=2.0,
        attention_window_size=CONTEXT,
    ),
}
"""More that scale or cap their logits."""

_EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_GROUPED = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}

MIXTURES: dict[str, Callable[[int], transformers.PreTrainedConfig]] = {
    "mixtral": lambda v: transformers.MixtralConfig(**plain(v), num_local_experts=4),
    "qwen2_moe": lambda v: transformers.Qwen2MoeConfig(
        **plain(v), num_experts=4, shared_expert_intermediate_size=16, **_EXPERTS
    ),
    "qwen3_moe": lambda v: transformers.Qwen3MoeConfig(**plain(v), head_dim=8, num_experts=4, **_EXPERTS),
    "qwen3_next": lambda v: transformers.Qwen3NextConfig(
        **plain(v),
        head_dim=8,
        num_experts=4,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        **_EXPERTS,
    ),
    "deepseek_v2": lambda v: transformers.DeepseekV2Config(
        **(plain(v) | _LATENT), **_GROUPED, first_k_dense_replace=1, **_EXPERTS
    ),
    "deepseek_v3": lambda v: transformers.DeepseekV3Config(
        **(plain(v) | _LATENT), **_GROUPED, first_k_dense_replace=1, **_EXPERTS
    ),
    "glm4_moe": lambda v: transformers.Glm4MoeConfig(
        **plain(v), head_dim=8, **_GROUPED, first_k_dense_replace=1, **_EXPERTS
    ),
    "dots1": lambda v: transformers.Dots1Config(**plain(v), **_GROUPED, first_k_dense_replace=1, **_EXPERTS),
    "gpt_oss": lambda v: transformers.GptOssConfig(
        **plain(v),
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "olmoe": lambda v: transformers.OlmoeConfig(**plain(v), num_experts=4, num_experts_per_tok=2),
    "flex_olmo": lambda v: transformers.FlexOlmoConfig(**plain(v), num_experts=4, num_experts_per_tok=2),
    "granitemoe": lambda v: transformers.GraniteMoeConfig(**plain(v), num_local_experts=4, num_experts_per_tok=2),
    "granitemoeshared": lambda v: transformers.GraniteMoeSharedConfig(
        **plain(v), num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=16
    ),
    "granitemoehybrid": lambda v: transformers.GraniteMoeHybridConfig(
        **plain(v),
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=16,
        layer_types=["mamba", "attention"],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
    ),
    "phimoe": lambda v: transformers.PhimoeConfig(**plain(v), num_local_experts=4, num_experts_per_tok=2),
    "dbrx": lambda v: transformers.DbrxConfig(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=48,
        vocab_size=v,
        ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
    ),
    "jamba": lambda v: transformers.JambaConfig(
        **plain(v),
        num_experts=4,
        num_experts_per_tok=2,
        use_mamba_kernels=False,
        mamba_d_state=4,
        mamba_dt_rank=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
    ),
    "llama4": lambda v: transformers.Llama4TextConfig(
        **plain(v),
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=1,
        intermediate_size_mlp=32,
        interleave_moe_layer_step=1,
    ),
    "ernie4_5_moe": lambda v: transformers.Ernie4_5_MoeConfig(
        **plain(v),
        moe_num_experts=4,
        moe_k=2,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
        moe_intermediate_size=16,
    ),
    "hunyuan_moe": lambda v: transformers.HunYuanMoEV1Config(**plain(v), num_experts=4, moe_topk=2, head_dim=8),
    "minimax": lambda v: transformers.MiniMaxConfig(**plain(v), num_local_experts=4, head_dim=8),
    "lfm2_moe": lambda v: transformers.Lfm2MoeConfig(
        **plain(v), num_experts=4, layer_types=["conv", "full_attention"], num_dense_layers=1, **_EXPERTS
    ),
    "jetmoe": lambda v: transformers.JetMoeConfig(
        vocab_size=v,
        hidden_size=32,
        num_hidden_layers=2,
        num_key_value_heads=2,
        kv_channels=8,
        intermediate_size=64,
        max_position_embeddings=48,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "aria": lambda v: transformers.AriaTextConfig(
        **plain(v), moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1, head_dim=8
    ),
    "glm4_moe_lite": lambda v: transformers.Glm4MoeLiteConfig(
        **(plain(v) | _LATENT), **_GROUPED, mlp_layer_types=["dense", "sparse"], **_EXPERTS
    ),
}
"""Mixtures of experts, with and without shared experts, dense first layers, state space layers."""


def model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model whose next-token distributions are far from uniform."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    config = (CONFIGS | SCALED | MIXTURES)[family](len(tokenizer))
    config.eos_token_id, config.pad_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id, None
    made: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.25)
    return made.eval()


def save(folder: Path, family: str = "qwen3", dtype: torch.dtype = torch.float32) -> Path:
    """A model folder with a tokenizer."""
    model(family).to(dtype).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[tuple[int, int]] = ROWS) -> Path:
    # Close to anything that a random model says, and closer to some of it.
    lines = [
        json.dumps({"messages": [{"role": "user", "content": f"{a}+{b}="}], "answer": CHARACTERS[:12]}) for a, b in rows
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def spec(folder: Path, model_path: Path, grader: dict[str, Any] = CLOSE, **asked: Any) -> RunSpec:
    """A run over ``ROWS`` whose files lie in ``folder``."""
    folder.mkdir(exist_ok=True)
    wanted = {
        "batch_size": 4,
        "group_size": 4,
        "mini_batches": 2,
        "learning_rate": 1e-2,
        "n_steps": 4,
        "eval_interval": 2,
        "max_completion_tokens": 5,
    }
    hyperparameters = resolve(Hyperparameters(**(wanted | asked)), training_rows=len(ROWS))
    return RunSpec(
        job_id="ftjob_1",
        attempt=1,
        job=JobSpec(
            model="tiny",
            training_file="file_1",
            validation_file="file_2",
            method=Reinforcement(grader=grader, hyperparameters=hyperparameters),
            seed=3,
        ),
        model_path=model_path,
        training_path=write_rows(folder / "train.jsonl"),
        validation_path=write_rows(folder / "valid.jsonl", ROWS[::2]),
        checkpoints=[],
        output_dir=folder / "out",
    )


def write_answered_rows(path: Path, rows: Sequence[tuple[int, int]] = ROWS) -> Path:
    """Additions of two turns, the first of which is not to be learned."""
    lines = []
    for a, b in rows:
        first = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "3", "weight": 0}]
        messages = [
            *first,
            {"role": "user", "content": f"{a}+{b}="},
            {"role": "assistant", "content": str(a + b), "weight": 1},
        ]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n")
    return path


def supervised_spec(folder: Path, model_path: Path, *, valid: bool = True, **asked: Any) -> RunSpec:
    """A supervised run over ``ROWS``, evaluated on every other of them."""
    made = spec(folder, model_path)
    wanted = {"batch_size": 4, "learning_rate": 1e-2, "n_steps": 4, "eval_interval": 2}
    hyperparameters = resolve(SupervisedHyperparameters(**(wanted | asked)), training_rows=len(ROWS))
    job = made.job.model_copy(update={"method": Supervised(hyperparameters=hyperparameters)})
    return made.model_copy(
        update={
            "job": job,
            "training_path": write_answered_rows(folder / "answered.jsonl"),
            "validation_path": write_answered_rows(folder / "held-out.jsonl", ROWS[::2]) if valid else None,
        }
    )


@dataclass
class Recorder:
    """Collects the lines of a run; ``on_line`` may do something about one."""

    on_line: Callable[[wire.Line], None] = lambda line: None
    lines: list[wire.Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.channel = Channel(self._take)

    def _take(self, raw: bytes) -> None:
        assert raw.endswith(b"\n")
        self.lines.append(wire.parse(raw))
        self.on_line(self.lines[-1])

    def metrics(self) -> dict[int, dict[str, Any]]:
        """The data of the metrics events by step."""
        events = [line for line in self.lines if isinstance(line, wire.Event) and line.type == "metrics"]
        return {event.data["step"]: event.data for event in events if event.data}

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, newest first."""
        return [line.path for line in self.lines if isinstance(line, wire.Checkpoint)][::-1]

    def failure(self) -> wire.Failure:
        (failure,) = (line for line in self.lines if isinstance(line, wire.Failure))
        return failure

    def messages(self) -> list[str]:
        return [line.message for line in self.lines if isinstance(line, wire.Event) and line.type == "message"]


def without_times(metrics: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The metrics without what no two runs have in common."""
    return {step: {name: value for name, value in data.items() if name != "timing"} for step, data in metrics.items()}
