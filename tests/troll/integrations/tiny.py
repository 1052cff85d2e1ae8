"""A tiny model, a tiny tokenizer and a trivial task, made on the fly; and trainers around them."""

import copy
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config
from trl import GRPOTrainer

from troll.integrations.trl import TROLLConfig, TROLLTrainer

WORDS = ["<pad>", "<end>", "<unknown>", *(f"w{i}" for i in range(29))]
FAVOURED = range(19, 27)


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unknown>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>", padding_side="left"
    )


def make_model(config: Any = None) -> PreTrainedModel:
    """The same random weights every time; its logits are spread enough for sparse rows to differ."""
    torch.manual_seed(0)
    default = Qwen3Config(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config) or default)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10.0)
    return model


def reward_favoured(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of a completion's tokens that are among the favoured words."""
    return [sum(token in FAVOURED for token in ids) / max(len(ids), 1) for ids in completion_ids]


def make_trainer(
    folder: Path,
    kind: type[GRPOTrainer] = TROLLTrainer,
    model: PreTrainedModel | None = None,
    adapters: LoraConfig | None = None,
    **options: Any,
) -> GRPOTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "seed": 3,
    }
    return kind(
        model=model or make_model(),
        reward_funcs=reward_favoured,
        args=TROLLConfig(**{**settings, **options}),
        train_dataset=Dataset.from_dict({"prompt": ["w1 w2", "w3 w4 w5", "w6", "w8 w9"] * 64}),
        processing_class=make_tokenizer(),
        peft_config=adapters,
    )


def next_inputs(trainer: GRPOTrainer, times: int = 1) -> dict[str, Any]:
    """What the trainer would hand to its loss: completions of the first prompts, scored, and one batch of them."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    prompts = next(iter(trainer.get_train_dataloader()))
    inputs = trainer._prepare_inputs(prompts)
    for _ in range(times - 1):
        trainer._step += 1
        inputs = trainer._prepare_inputs(prompts)
    return inputs


def logged(trainer: GRPOTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if entry.get(name) is not None]
