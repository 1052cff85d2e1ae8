"""In what form a model leaves: the formats, the types of a GGUF file, and the families that one is made of."""

from typing import Literal, get_args

Format = Literal["huggingface", "merged", "adapter", "gguf"]
GGUFType = Literal["f32", "f16", "bf16", "q8_0"]
FORMATS: tuple[Format, ...] = get_args(Format)
GGUF_TYPES: tuple[GGUFType, ...] = get_args(GGUFType)
BITS: dict[GGUFType, float] = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5}
"""Of each number in a file."""
GGUF_FAMILIES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3")
"""By ``model_type`` in config.json; ``workers.exporting.families`` has what is to be known of each."""
