"""Folders that other programs load: the model, or its adapter, with all that is needed to talk to it.

huggingface    what the model's folder holds; after LoRA the weights with the adapter in them, and the adapter beside
merged         the same without the adapter
adapter        the adapter alone, as peft and vLLM load it upon its base model, with the tokenizer

Files are linked, not copied, where the file system allows it. Two are written anew, so that a program that knows
nothing of this service ends an answer where the service does and writes a chat as the model was trained on:
generation_config.json names every token that ends an answer, and the chat template is told its values by itself.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from peft import PeftConfig
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from service.contracts import chat_template
from workers.errors import RunError
from workers.exporting import chats
from workers.modeling import export, lora, model_folder

GENERATION_CONFIG = export.GENERATION_CONFIG
TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
OF_WEIGHTS = (".safetensors", ".safetensors.index.json")


def write(source: Path, folder: Path, format: str) -> list[str]:
    """Fill the empty ``folder`` and check that it can be loaded. Returns what its reader has to know."""
    model_folder.check(source)
    tokenizer = model_folder.load_tokenizer(source)
    adapter = source / export.ADAPTER
    for path in _files(source):
        is_model = path.name.endswith(OF_WEIGHTS) or path.name == "config.json"
        if format != "adapter" or not is_model:
            _link(path, folder / path.name)
    if format == "adapter":
        for path in _files(adapter):
            _link(path, folder / path.name)
    elif format == "huggingface" and adapter.is_dir():
        (folder / export.ADAPTER).mkdir()
        for path in _files(adapter):
            _link(path, folder / export.ADAPTER / path.name)
    _name_ends(source, folder, tokenizer)
    _tell_template(source, folder)
    if format == "adapter":
        return _check_adapter(folder)
    export.check(folder)
    return []


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()]


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:
        # Another file system, one without links, or another owner's file.
        shutil.copyfile(path, to)


def _name_ends(source: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = folder / GENERATION_CONFIG
    settings = json.loads(path.read_bytes()) if path.is_file() else {}
    ends = model_folder.stop_ids(source, tokenizer)
    _replace(path, settings | {"eos_token_id": ends[0] if len(ends) == 1 else ends})


def _tell_template(source: Path, folder: Path) -> None:
    values = chat_template.remembered(source)
    if not values:
        return
    beside, within = folder / TEMPLATE, folder / TOKENIZER_CONFIG
    if beside.is_file():
        text = chats.told(beside.read_text(), values)
        beside.unlink()
        beside.write_text(text)
        return
    settings = json.loads(within.read_bytes())
    if not isinstance(settings.get("chat_template"), str):
        raise model_folder.unusable("has several chat templates, which are told values that nobody else knows")
    _replace(within, settings | {"chat_template": chats.told(settings["chat_template"], values)})


def _replace(path: Path, settings: dict[str, Any]) -> None:
    """Write ``path`` anew: it may be a link to the model's own file."""
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n")


def _check_adapter(folder: Path) -> list[str]:
    config = PeftConfig.from_pretrained(folder)
    with safe_open(folder / lora.WEIGHTS, framework="pt") as opened:
        strangers = [name for name in opened.keys() if not name.startswith(lora.PREFIX)]  # noqa: SIM118
    if strangers or config.peft_type != "LORA":
        raise RunError("invalid_export", f"The adapter's files cannot be loaded again: they hold {strangers[:3]}.")
    base = config.base_model_name_or_path
    return [f"The adapter belongs on the model '{base}': load that one first. vLLM needs --max-lora-rank {config.r}."]
