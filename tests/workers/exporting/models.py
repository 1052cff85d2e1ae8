"""Tiny models with tokenizers of the kinds that people train: byte-level BPE, SentencePiece's BPE, Unigram."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

CONTEXT = 64
TEXT = "How many are 12 and 30?  They're 42 — it's sure.\n\tNaïve 数字 42,  🦙 I'LL say no-more... 1234567 <|im_end"
CORPUS = [TEXT, "the sum of the two numbers is the answer", "and then they say that this is the answer"] * 8
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?", 1)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '[INST] ' + message.content + "
    "' [/INST]' }}{% elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}{% else %}"
    "{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)


def byte_level(
    regex: str = QWEN, *, added: tuple[str, ...] = (), template: str | None = CHATML, bos: bool = False
) -> PreTrainedTokenizerFast:
    """As Qwen's and Llama 3's are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *added]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>" if bos else None,
        additional_special_tokens=special[1:],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def sentencepiece(*, prefix: bool = True, template: str | None = INST) -> PreTrainedTokenizerFast:
    """As Llama 2's and Gemma's are: pieces in the order of their merges, each with all the ways to make it."""
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200))
    ordered = sorted(learned.get_vocab().items(), key=lambda each: each[1])
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(piece for piece, _ in ordered)]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece, _ in ordered
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _with_bos(tokenizer, template)


def unigram(template: str | None = INST) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _with_bos(tokenizer, template)


def _with_bos(tokenizer: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def plain(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    } | more


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


LLAMA3_ROPE = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**plain(), tie_word_embeddings=False),
    "llama3": lambda: transformers.LlamaConfig(**plain(), rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True),
    "llama-bias": lambda: transformers.LlamaConfig(**plain(num_key_value_heads=4), attention_bias=True),
    "mistral": lambda: transformers.MistralConfig(**plain(), head_dim=16, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**plain(), tie_word_embeddings=True),
    "qwen2-yarn": lambda: transformers.Qwen2Config(
        **plain(), rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16)
    ),
    "qwen3": lambda: transformers.Qwen3Config(**plain(), head_dim=32, tie_word_embeddings=True),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **plain(), head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True
    ),
    "smollm3": lambda: transformers.SmolLM3Config(**plain(num_hidden_layers=4), tie_word_embeddings=True),
    "gemma": lambda: transformers.GemmaConfig(**plain(), head_dim=32),
    "gemma2": lambda: transformers.Gemma2Config(**plain(), head_dim=32, sliding_window=8, query_pre_attn_scalar=32),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(
        **plain(num_hidden_layers=7), head_dim=32, sliding_window=8, query_pre_attn_scalar=32
    ),
    "phi3": lambda: transformers.Phi3Config(
        **plain(), sliding_window=None, pad_token_id=0, original_max_position_embeddings=CONTEXT
    ),
    "phi3-long": lambda: transformers.Phi3Config(
        **plain(),
        pad_token_id=0,
        original_max_position_embeddings=32,
        rope_parameters=rope(
            "longrope", short_factor=[1.0 + i / 8 for i in range(8)], long_factor=[2.0 + i for i in range(8)]
        ),
    ),
}


def make(family: str, rows: int) -> PreTrainedModel:
    """A random model with ``rows`` embeddings whose next-token distributions are far from uniform."""
    torch.manual_seed(0)
    config = CONFIGS[family]()
    config.vocab_size = rows
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    made: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
            elif name.endswith("norm.weight"):
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=0.1)
    return made.eval()


def save(
    folder: Path,
    family: str = "qwen3",
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    rows: int = 0,
    dtype: torch.dtype = torch.float32,
    generation: dict[str, Any] | None = None,
) -> Path:
    """A model folder; with ``rows``, that many embeddings."""
    tokenizer = tokenizer or byte_level()
    made = make(family, rows or len(tokenizer)).to(dtype)
    made.save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
