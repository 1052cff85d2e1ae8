"""A model as one GGUF file, which llama.cpp and Ollama read, and reading it again.

Weights are read from the folder's files one at a time, so that a model of any size needs the memory of its largest
weight. Norms and biases stay in float32, as llama.cpp computes with them.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from gguf.gguf_writer import GGUFWriter
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from workers.errors import RunError
from workers.exporting import families, vocabulary
from workers.exporting.chats import Chats
from workers.exporting.families import Family
from workers.exporting.vocabulary import Vocabulary
from workers.modeling import model_folder

NAME = "model.gguf"
Q8_BLOCK, Q8_BYTES = 32, 34
"""Numbers of a block of Q8_0, and its bytes."""
TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
EXACT = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
"""The type that holds what is stored without rounding."""
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")

Progress = Callable[[float], object]
"""Told the share of the work that is done, from 0 to 1."""


@dataclass(frozen=True)
class Planned:
    """A tensor of the file: its name there, its shape as torch has it, its type, and how it is read."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        numbers = int(np.prod(self.shape))
        if self.type is GGMLQuantizationType.Q8_0:
            return numbers // Q8_BLOCK * Q8_BYTES
        return numbers * (4 if self.type is GGMLQuantizationType.F32 else 2)

    def data(self) -> NDArray[Any]:
        """Raises ``RunError`` where a number is too large for the type."""
        values = self.read().float().contiguous().numpy()
        with np.errstate(over="ignore"):
            made: NDArray[Any] = quantize(values, self.type)
        if self.type is GGMLQuantizationType.F16 and not np.isfinite(made).all() and np.isfinite(values).all():
            raise RunError(
                "invalid_export", f"{self.name} holds numbers that f16 cannot hold. Export as bf16, f32 or q8_0."
            )
        return made


@dataclass(frozen=True)
class Source:
    """What a file is made of. Making one raises ``RunError`` for a model that llama.cpp would read otherwise."""

    folder: Path
    config: Any
    family: Family
    vocabulary: Vocabulary
    chats: Chats
    rows: int

    @classmethod
    def of(cls, folder: Path) -> "Source":
        model_folder.check(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        family = families.of(config)
        tokenizer = model_folder.load_tokenizer(folder)
        chats = Chats.of(folder, tokenizer)
        rows = _rows(folder)
        return cls(folder, config, family, vocabulary.read(folder, tokenizer, rows, chats), chats, rows)


def write(source: Source, path: Path, name: str, type: str | None, progress: Progress) -> str:
    """Write the file ``path`` and read it again. ``type`` is one of ``TYPES``, or None for the one that rounds nothing.

    ``name`` is what programs show of the model. Returns the type. Raises ``RunError``.
    """
    type = type or _exact(source.folder)
    planned = list(plan(source, TYPES[type][0]))
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[source.family.arch])
    writer.add_name(name)
    writer.add_file_type(TYPES[type][1])
    writer.add_quantization_version(2)
    families.describe(writer, source.config, source.family, source.rows)
    source.vocabulary.write(writer)
    if source.chats.template is not None:
        writer.add_chat_template(source.chats.template)
    for each in planned:
        writer.add_tensor_info(each.name, each.shape, np.dtype(np.float32), each.bytes, raw_dtype=each.type)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total, done = 2 * sum(each.bytes for each in planned), 0
    for each in planned:
        writer.write_tensor_data(each.data())
        done += each.bytes
        progress(done / total)
    writer.close()
    for read in check(source, path, planned):
        done += read
        progress(done / total)
    return type


def _exact(folder: Path) -> str:
    stored = model_folder.saved_dtype(folder)
    if stored not in EXACT:
        dtype = str(stored).removeprefix("torch.")
        message = f"The weights are stored in {dtype}, which no type of GGUF holds: name one ({', '.join(TYPES)})."
        raise RunError("invalid_export", message)
    return EXACT[stored]


def check(source: Source, path: Path, planned: list[Planned]) -> Iterator[int]:
    """Read the file again: bytes of each tensor that is as it should be. Raises ``RunError`` where one is not."""
    reader = GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    if found.keys() != {each.name for each in planned}:
        raise _broken(f"it has the tensors {sorted(found)[:5]}…")
    for each in planned:
        tensor = found[each.name]
        shape = tuple(int(length) for length in reversed(tensor.shape))
        if (shape, tensor.tensor_type) != (each.shape, each.type):
            raise _broken(f"{each.name} is {shape} of type {tensor.tensor_type.name}")
        if not np.array_equal(_bytes(tensor.data), _bytes(each.data())):
            raise _broken(f"{each.name} is not what was written")
        yield each.bytes
    written = {
        "tokenizer.ggml.tokens": source.vocabulary.tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in source.vocabulary.kinds],
        "tokenizer.chat_template": source.chats.template,
        **{f"tokenizer.ggml.{KEYS.get(name, name)}_token_id": id for name, id in source.vocabulary.special.items()},
    }
    for key, expected in written.items():
        field = reader.get_field(key)
        if (None if field is None else field.contents()) != expected:
            raise _broken(f"{key} is not what was written")


KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
"""What special tokens are called in the file, where that is not the tokenizer's word."""


def plan(source: Source, type: GGMLQuantizationType) -> Iterator[Planned]:
    """The file's tensors. Raises ``RunError`` where the folder holds one that the family has no place for."""
    config, family = source.config, source.family
    names = get_tensor_name_map(family.arch, config.num_hidden_layers)
    experts: dict[str, dict[int, tuple[Path, str]]] = {}
    for name, tensor in families.rope_tensors(config).items():
        yield Planned(name, tuple(tensor.shape), GGMLQuantizationType.F32, partial(_itself, tensor))
    for file in model_folder.weight_files(source.folder):
        path = source.folder / file
        with safe_open(path, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        for name, shape in shapes.items():
            if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings):
                continue
            expert = _EXPERT.fullmatch(name)
            if expert is not None:
                of_all = experts.setdefault(f"{expert[1]}.{expert[3]}", {})
                of_all[int(expert[2])] = (path, name)
                if len(of_all) == config.num_experts:
                    where = [of_all[number] for number in range(config.num_experts)]
                    read = _stacked(where)
                    yield _planned(names, f"{expert[1]}.{expert[3]}", (config.num_experts, *shape), type, read)
                continue
            yield _planned(names, name, shape, type, _reader(source, path, name))


def _planned(names: Any, name: str, shape: tuple[int, ...], type: GGMLQuantizationType, read: Any) -> Planned:
    place = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if place is None:
        raise model_folder.unusable(f"holds the weight {name}, for which the family's GGUF files have no place")
    return Planned(place, shape, _stored_as(place, shape, type), read)


def _stored_as(place: str, shape: tuple[int, ...], type: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) == 1 or place.endswith("ffn_gate_inp.weight"):
        return GGMLQuantizationType.F32
    if type is GGMLQuantizationType.Q8_0 and shape[-1] % Q8_BLOCK:
        return GGMLQuantizationType.F16
    return type


def _reader(source: Source, path: Path, name: str) -> Callable[[], Tensor]:
    config, family = source.config, source.family

    def read() -> Tensor:
        tensor = _load(path, name)
        layer = name.rpartition(".")[0]
        if family.permuted and layer.endswith("q_proj"):
            return families.permute(tensor, config.num_attention_heads)
        if family.permuted and layer.endswith("k_proj"):
            return families.permute(tensor, config.num_key_value_heads)
        return tensor.float() + 1 if family.shifted and layer.endswith("norm") else tensor

    return read


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _stacked(where: list[tuple[Path, str]]) -> Callable[[], Tensor]:
    return lambda: torch.stack([_load(path, name) for path, name in where])


def _load(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor


def _rows(folder: Path) -> int:
    for file in model_folder.weight_files(folder):
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                if name.endswith("embed_tokens.weight"):
                    return int(opened.get_slice(name).get_shape()[0])
    raise model_folder.unusable("holds no embeddings of tokens")


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _broken(reason: str) -> RunError:
    return RunError("invalid_export", f"The GGUF file could not be written: {reason}. Export the model again.")
