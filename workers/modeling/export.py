"""Model folders that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load, and folders that appear whole or never.

config.json, model*.safetensors,    a whole model in the base's dtype, and unchanged what else the base's files hold;
                                    after LoRA those files, the adapter added to the weights it adapts
tokenizer and generation config
chat_template_kwargs.json           what the chat template is told beside the messages, where the job says so
adapter/                            after LoRA: the adapter in peft's format, which names the base model's id
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

from service.contracts import chat_template
from workers.errors import RunError
from workers.modeling import distributed, lora, rounding, sharding
from workers.modeling.model_folder import WEIGHTS_INDEX, weight_files
from workers.modeling.policy import Policy
from workers.modeling.precision import dtype_on

ADAPTER = "adapter"
GENERATION_CONFIG = "generation_config.json"
FAULTS = ("missing_keys", "mismatched_keys")


def export(policy: Policy, folder: Path) -> None:
    """Write the model to ``folder``, which appears only when everything in it is on disk and can be loaded."""
    with whole(folder) as partial:
        write_model(policy, partial)


def write_model(policy: Policy, folder: Path) -> None:
    """Write weights in the base model's dtype, configuration and tokenizer, and the adapter beside them.

    Raises ``RunError`` where what is on disk then is not that, or would not be what transformers loads.
    """
    logging.disable_progress_bar()
    if policy.adapter is None:
        _write_trained(policy, folder)
    else:
        adapter = {name: tensor.cpu() for name, tensor in sharding.whole(lora.tensors(policy.model).items())}
        if distributed.rank() == 0:
            folder.mkdir(exist_ok=True)
            _write_merged(policy, policy.adapter, adapter, folder)
            lora.save(adapter, policy.adapter, folder / ADAPTER)
    if distributed.rank() == 0:
        _write_generation_config(policy, folder)
        policy.tokenizer.save_pretrained(folder)
        if policy.template_values:
            (folder / chat_template.FILE).write_text(json.dumps(policy.template_values, indent=2) + "\n")
        check(folder)


def _write_trained(policy: Policy, folder: Path) -> None:
    """Write all weights as they are in memory, in the dtypes of the base model's files, and what else these hold."""
    model, usual = policy.model, policy.saved_dtype
    weights: dict[str, Tensor] = {}
    for name, tensor in sharding.whole(model.state_dict().items()):
        if distributed.rank() == 0 and name not in model.all_tied_weights_keys:
            # In the computer's memory: beside the model a GPU may have no room for it once more. Where all have one
            # dtype they need not wait for the names that the files have for them.
            early = tensor.is_floating_point() and not policy.stored_dtypes and _computed_in(policy) == usual
            weights[name] = tensor.to("cpu", usual if early else tensor.dtype)
    if distributed.rank() > 0:
        return
    stored = dict(revert_weight_conversion(model, weights))
    for name, tensor in stored.items():
        if tensor.is_floating_point():
            dtype = policy.stored_dtypes.get(name, usual)
            # What was computed with rounded weights, in training and in sampling, is the model of the nearest ones.
            exact = _computed_in(policy) != dtype
            stored[name] = rounding.stochastically(tensor, dtype, name) if exact else tensor.to(dtype)
    stored |= _left_out(policy)
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder, state_dict=dict(stored), save_original_format=False)
    _set_dtype(folder / "config.json", usual)
    for file in weight_files(folder):
        _compare(folder / file, stored)


def _computed_in(policy: Policy) -> torch.dtype:
    return getattr(torch, dtype_on(policy.device))  # type: ignore[no-any-return]


def _left_out(policy: Policy) -> dict[str, Tensor]:
    """Weights of the base model's files that are no part of the model, mapped from there and not read into memory."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(policy.left_out.values())):
        with safe_open(policy.folder / file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name, where in policy.left_out.items() if where == file}
    return tensors


def _write_generation_config(policy: Policy, folder: Path) -> None:
    original = policy.folder / GENERATION_CONFIG
    if original.is_file():
        # transformers refuses to save some generation configs that it loads.
        shutil.copyfile(original, folder / GENERATION_CONFIG)
        return
    made = GenerationConfig.from_model_config(policy.model.config)
    # Whoever generates with it elsewhere knows no chat template.
    made.eos_token_id = policy.stop_ids
    made.save_pretrained(folder)


def _write_merged(policy: Policy, config: LoraConfig, adapter: dict[str, Tensor], folder: Path) -> None:
    """Write the base model's files anew, and in them the weights it stores, not those it computed with."""
    layers = {stored: layer for layer, stored in lora.stored_names(policy.model).items()}
    for file in weight_files(policy.folder):
        with safe_open(policy.folder / file, framework="pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(policy.folder / file)
        for name in tensors.keys() & layers.keys():
            added = lora.difference(adapter, layers.pop(name), config)
            if added.any():
                weight = tensors[name]
                exact = weight.to(torch.promote_types(weight.dtype, torch.float32)) + added
                tensors[name] = rounding.stochastically(exact, weight.dtype, name)
        save_file(tensors, folder / file, metadata)
        _compare(folder / file, tensors)
    assert not layers, f"no file of {policy.folder} has {sorted(layers)[:5]}"
    for name in ("config.json", WEIGHTS_INDEX):
        if (policy.folder / name).is_file():
            shutil.copyfile(policy.folder / name, folder / name)


def share_unchanged(folder: Path, base: Path) -> float:
    """The share of the numbers in a model's files that are those of the ``base`` model's."""
    same = count = 0
    where = {name: file for file in weight_files(base) for name in _names(base / file)}
    for file in weight_files(folder):
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                tensor = opened.get_tensor(name)
                count += tensor.numel()
                if name in where:
                    with safe_open(base / where[name], framework="pt") as theirs:
                        same += int((tensor == theirs.get_tensor(name)).sum())
    return same / count


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as opened:
        return list(opened.keys())


def _compare(path: Path, expected: Mapping[str, Tensor]) -> None:
    """Raises ``RunError`` unless every tensor of a file is, to the bit, that of the same name in ``expected``."""
    with safe_open(path, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (it is no mapping)
            written, meant = opened.get_tensor(name), expected.get(name)
            same = meant is not None and (written.dtype, written.shape) == (meant.dtype, meant.shape)
            if meant is None or not same or not torch.equal(_bytes(written), _bytes(meant)):
                raise _unlike_the_trained(f"{name} in {path.name} is not what was trained")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _unlike_the_trained(reason: str) -> RunError:
    return RunError(
        "invalid_result",
        f"The trained model could not be written: {reason}. The job can be resumed from its last checkpoint.",
    )


def check(folder: Path) -> None:
    """Raises ``RunError`` unless transformers finds in ``folder`` every weight of its architecture."""
    _, report = AutoModelForCausalLM.from_pretrained(
        folder, device_map="meta", local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    faults = {fault: sorted(map(str, report[fault]))[:5] for fault in FAULTS if report.get(fault)}
    if faults:
        raise _unlike_the_trained(f"transformers would not find all of its weights again ({faults})")


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
