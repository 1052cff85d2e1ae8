"""Hugging Face model folders: whether one can be loaded safely, and what its files say of the model."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from workers.errors import RunError

CODE = {".py", ".pkl", ".pickle"}
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
UNBOUNDED_CONTEXT = 1 << 20
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Those a weight that can be trained is stored in, as safetensors calls them."""


def read(folder: Path, dtype: torch.dtype | Literal["auto"]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a folder, its weights in ``dtype`` ("auto": as they are stored), and its tokenizer.

    Raises ``RunError`` where the folder cannot be loaded safely.
    """
    check(folder)
    tokenizer = load_tokenizer(folder)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise unusable(f"cannot be loaded: {error}") from error
    for fault in ("missing_keys", "mismatched_keys"):
        if report.get(fault):
            # transformers would go on with random numbers in their place.
            raise unusable(f"lacks weights of its architecture ({fault}): {sorted(map(str, report[fault]))[:5]}")
    return model, tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises ``RunError`` where there is none that can be loaded."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise unusable(f"cannot be loaded: {error}") from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        # transformers makes an empty tokenizer of the architecture's kind where the folder has none.
        raise unusable("has no tokenizer")
    return tokenizer


def check(folder: Path) -> None:
    """Refuse a folder that lacks files or brings code along."""
    if not (folder / "config.json").is_file():
        raise unusable("has no config.json: it is not a Hugging Face model folder")
    code = sorted(path.name for path in folder.iterdir() if path.suffix in CODE)
    if code:
        raise unusable(f"contains code ({', '.join(code)}), which is never run here")
    for name in ("config.json", "tokenizer_config.json"):
        settings = _settings(folder / name) if (folder / name).is_file() else {}
        if "auto_map" in settings:
            raise unusable(f"asks for code of its own (auto_map in {name}), which is never run here")
        if "quantization_config" in settings:
            raise unusable("has quantized weights, which cannot be trained; use the original ones")
    missing = sorted(name for name in weight_files(folder) if not (folder / name).is_file())
    if missing:
        raise unusable(f"lacks {', '.join(missing)}; weights are read from safetensors files only")


def weight_files(folder: Path) -> list[str]:
    """The names of the files that hold a model folder's weights."""
    index = folder / WEIGHTS_INDEX
    return sorted(set(_settings(index).get("weight_map", {}).values())) if index.is_file() else [WEIGHTS]


def without_embedding(tokenizer: PreTrainedTokenizerBase, token: int, rows: int, param: str) -> str:
    """What is wrong with a folder whose tokenizer makes ``token`` of the file that ``param`` names."""
    return (
        f"has a tokenizer that makes token {token} ({tokenizer.convert_ids_to_tokens(token)!r}) of the {param}, and "
        f"embeddings for {rows} tokens, 0 to {rows - 1}. Give the model an embedding for each token that was added to "
        "its tokenizer (resize_token_embeddings), or take the token out of the rows or the tokenizer"
    )


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        raise unusable(f"has a {path.name} that is not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise unusable(f"has a {path.name} that is not a JSON object")
    return settings


def unusable(reason: str) -> RunError:
    return RunError("invalid_model", f"The model's folder {reason}.", param="model")


def saved_dtype(folder: Path) -> torch.dtype:
    """The dtype the folder's weights are stored in."""
    config = _settings(folder / "config.json")
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise unusable(f"has weights of dtype {name}, which cannot be trained")
    return dtype


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    usual, found = saved_dtype(folder), {}
    for file in weight_files(folder):
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                dtype = _DTYPES.get(opened.get_slice(name).get_dtype(), usual)
                if dtype != usual:
                    found[name] = dtype
    return found


def left_out(folder: Path, model: PreTrainedModel) -> dict[str, str]:
    known, conversions = model.state_dict(), deepcopy(getattr(model, "_weight_conversions", None) or [])
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    found = {}
    for file in weight_files(folder):
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                # As transformers finds it; what it reports leaves out names that an architecture tells it to ignore.
                loaded, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
                if loaded not in known and name not in known:
                    found[name] = file
    return found


def context_length(config: PreTrainedConfig) -> int:
    """Most tokens of a prompt and its answer together."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length and length > 0 else UNBOUNDED_CONTEXT


def stop_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer, by the tokenizer, its chat template, the config and the generation config."""
    found = {tokenizer.eos_token_id, end_of_turn(tokenizer)}
    config = _settings(folder / "config.json")
    text = config.get("text_config")
    for each in (config, text if isinstance(text, dict) else {}):
        found |= _ids(each.get("eos_token_id"))
    if (folder / "generation_config.json").is_file():
        try:
            found |= _ids(GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id)
        except (OSError, ValueError) as error:
            raise unusable(f"has a generation_config.json that cannot be read: {error}") from error
    ends = sorted(found - {None})
    if not ends:
        raise unusable("names no end-of-sequence token, in the tokenizer, in config.json or in generation_config.json")
    return ends


def _ids(ends: Any) -> set[int]:
    return {each for each in (ends if isinstance(ends, list) else [ends]) if isinstance(each, int)}


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template puts right behind what the assistant says last; None where it puts none."""
    if tokenizer.chat_template is None:
        return None
    said = "2701 and 96"
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": said}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TemplateError, TypeError, ValueError):
        # A template may want messages of another kind.
        return None
    after = text.rpartition(said)[2].lstrip() if said in text else ""
    tokens = tokenizer.get_added_vocab()
    ends = [token for token in tokens if after.startswith(token)]
    return int(tokens[max(ends, key=len)]) if ends else None
