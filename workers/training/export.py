"""Model folders that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load, and folders that appear whole or never.

config.json, model*.safetensors,    a whole model in the base's dtype, adapters merged in
tokenizer and generation config
adapter/                            after LoRA: the adapter in peft's format, which names the base model's id
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import logging

from workers.training import distributed, lora, sharding
from workers.training.policy import Policy

ADAPTER = "adapter"
GENERATION_CONFIG = "generation_config.json"


def export(policy: Policy, folder: Path) -> None:
    """Write the model to ``folder``, which appears only when everything in it is on disk."""
    with whole(folder) as partial:
        write_model(policy, partial)


def write_model(policy: Policy, folder: Path) -> None:
    """Write weights in the base model's dtype, configuration and tokenizer, and the adapter beside them."""
    logging.disable_progress_bar()
    model, dtype = policy.model, policy.saved_dtype
    weights: dict[str, Tensor] = {}
    for name, tensor in sharding.whole(lora.merged(model)):
        if distributed.rank() == 0 and name not in model.all_tied_weights_keys:
            # In the computer's memory: beside the model a GPU may have no room for it once more.
            weights[name] = tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
    adapter = dict(sharding.whole(lora.tensors(model).items())) if policy.adapter is not None else {}
    if distributed.rank() > 0:
        return
    # transformers refuses to save some generation configs that it loads, so the base model's is copied as it is.
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder, state_dict=weights)
    original = policy.folder / GENERATION_CONFIG
    if original.is_file():
        shutil.copyfile(original, folder / GENERATION_CONFIG)
    _set_dtype(folder / "config.json", dtype)
    policy.tokenizer.save_pretrained(folder)
    if policy.adapter is not None:
        lora.save(adapter, policy.adapter, folder / ADAPTER)


def _set_dtype(path: Path, dtype: torch.dtype) -> None:
    """transformers writes the dtype the model computes in, which is not that of the weights written beside it."""
    config = json.loads(path.read_bytes())
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n")


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder for all ranks to write into that becomes ``folder`` once all have; nothing is left where one fails."""
    partial = start(folder)
    try:
        yield partial
        finish(partial, folder)
    except BaseException:
        if distributed.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def start(folder: Path) -> Path:
    """An empty folder beside ``folder`` for all ranks to write into."""
    partial = folder.with_name(f".{folder.name}.partial")
    if distributed.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    distributed.barrier()
    return partial


def finish(partial: Path, folder: Path) -> None:
    """Put ``partial`` in the place of ``folder`` once all ranks have written and all of it is on disk."""
    distributed.barrier()
    if distributed.rank() == 0:
        _put(partial, folder)
    distributed.barrier()


def _put(partial: Path, folder: Path) -> None:
    for path in [*partial.rglob("*"), partial]:
        sync(path)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
