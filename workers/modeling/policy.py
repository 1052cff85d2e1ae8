"""The model being trained: any causal language model of transformers.

Weights that are trained are float32. With LoRA these are the adapters' alone; the base's are frozen, and kept in
bfloat16 on a GPU, where they are computed with in no other precision.

Only the positions that predict a response token reach the output matrix. Dropout stays off, so that the old policy and
the new one differ by their weights alone.

N response tokens of a micro-batch, H hidden size, V vocabulary.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from workers.modeling import distributed, lora
from workers.modeling.lm_head import LogitTransform, recognise
from workers.modeling.lora import Lora
from workers.modeling.precision import autocast
from workers.modeling.recomputation import Recomputation, When
from workers.modeling.rows import Readable
from workers.modeling.sharing import longest_shared
from workers.training.errors import RunError

CODE = {".py", ".pkl", ".pickle"}
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
UNBOUNDED_CONTEXT = 1 << 20
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Those a weight that can be trained is stored in, as safetensors calls them."""


class Policy:
    """A model and its tokenizer, from ``folder``; with ``adapter``, it is the base model and the adapter is trained."""

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        adapter: LoraConfig | None = None,
        *,
        device: torch.device | None = None,
        recompute: When = "never",
    ) -> None:
        self.folder, self.model, self.tokenizer, self.adapter = folder, model, tokenizer, adapter
        self.device = device or model.device
        """Where it is trained. Until it is spread over several of them, the model may lie elsewhere."""
        self.saved_dtype = _saved_dtype(folder)
        self.stored_dtypes = _stored_dtypes(folder)
        """By the name it has in the folder's files, the dtype of each weight that is stored in another one."""
        self.left_out = {} if adapter else _left_out(folder, model)
        """What the folder's files hold beside the model, like a vision tower: the file of each weight, by its name."""
        self.context_length = context_length(model.config)
        self.stop_ids = stop_ids(folder, tokenizer)
        self.template_values: Mapping[str, Any] = {}
        """What its chat template is told beside the messages."""
        self.lm_head: nn.Linear | None
        """The output layer, where logits are known to be ``transform`` of it applied to the hidden states."""
        self.lm_head, self.transform = recognise(model) or (None, LogitTransform())
        self.backbone: Callable[..., Tensor] = lambda *given, **options: (
            model.base_model(*given, **options).last_hidden_state
        )
        """Everything before the output layer: input ids to hidden states ``[B, T, H]``; needs ``lm_head``."""
        self._accepted = set(inspect.signature(model.forward).parameters)
        self._recomputation = Recomputation(model, recompute, self.device)
        self.longest_shared = longest_shared(model, self.logits if self.lm_head is None else self.hidden)
        """Up to this length samples may share rows; 0 where each needs its own."""

    @property
    def vocabulary_size(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    def check_tokens(self, sequences: Iterable[Sequence[int]], param: str) -> None:
        """Raises ``RunError`` where the file that ``param`` names has tokens that the model has no embedding for."""
        highest = max((max(ids) for ids in sequences if ids), default=0)
        rows = int(self.model.get_input_embeddings().num_embeddings)
        if highest >= rows:
            raise _unusable(without_embedding(self.tokenizer, highest, rows, param))

    @property
    def rounded(self) -> bool:
        """Whether weights are trained in more precision than a folder of the model stores."""
        return self.saved_dtype != torch.float32 or bool(self.stored_dtypes)

    @property
    def tied(self) -> bool:
        """Whether the output layer's matrix is that of the embeddings."""
        return self.lm_head is not None and self.lm_head.weight is self.model.get_input_embeddings().weight

    def hidden(self, batch: Readable) -> Tensor:
        """Last hidden states ``[N, H]`` at the positions that predict the response tokens; needs ``lm_head``."""
        with self._recomputation:
            states = self.backbone(batch.input_ids, **self._arguments(batch))
        return _at(states, batch.positions)

    def logits(self, batch: Readable) -> Tensor:
        """Logits ``[N, V]`` of the response tokens, before any temperature."""
        with autocast(self.device):
            if self.lm_head is not None:
                return self.transform(self.lm_head(self.hidden(batch)))
            with self._recomputation:
                whole = self.model(batch.input_ids, **self._arguments(batch)).logits
            return _at(whole, batch.positions)

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Per sequence, the log-probability at temperature 1 of each of its tokens from the second on."""
        scores = []
        for sequence in sequences:
            ids = torch.tensor([sequence], device=self.device)
            with autocast(self.device):
                logits = self.model(ids, **self._arguments()).logits[0, :-1]
            rows: list[float] = logits.float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
            scores.append(rows)
        return scores

    def _arguments(self, batch: Readable | None = None) -> dict[str, Any]:
        # Where a row is one sequence no mask is needed: padding stands behind it, where causal attention never looks.
        arguments: dict[str, Any] = {"use_cache": False} if "use_cache" in self._accepted else {}
        if batch is not None and batch.layout is not None:
            layout = batch.layout
            arguments |= {"position_ids": layout.position_ids, "attention_mask": layout.attention_mask()}
        return arguments


def load(folder: Path, device: torch.device, adapters: Lora | None = None, *, recompute: When = "never") -> Policy:
    """The policy stored in a Hugging Face model folder, with fresh ``adapters`` on it where they are given.

    ``recompute`` says when layers are computed again for the backward pass. Raises ``RunError`` where the folder
    cannot be loaded safely, or its model takes no adapters or cannot be recomputed.
    """
    model, tokenizer = read(folder, torch.bfloat16 if adapters and device.type == "cuda" else torch.float32)
    # A rank's device takes its part alone.
    model.to(device if distributed.size() == 1 else "cpu").eval()
    try:
        config = lora.attach(model, adapters) if adapters else None
        if config:
            _check_stored(folder, lora.stored_names(model))
        return Policy(folder, model, tokenizer, config, device=device, recompute=recompute)
    except ValueError as error:
        raise _unusable(f"has a model that does not take what the job asks for: {error}") from error


def read(folder: Path, dtype: torch.dtype | Literal["auto"]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a folder, its weights in ``dtype`` ("auto": as they are stored), and its tokenizer.

    Raises ``RunError`` where the folder cannot be loaded safely.
    """
    check_folder(folder)
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
        raise _unusable(f"cannot be loaded: {error}") from error
    for fault in ("missing_keys", "mismatched_keys"):
        if report.get(fault):
            # transformers would go on with random numbers in their place.
            raise _unusable(f"lacks weights of its architecture ({fault}): {sorted(map(str, report[fault]))[:5]}")
    return model, tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises ``RunError`` where there is none that can be loaded."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unusable(f"cannot be loaded: {error}") from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        # transformers makes an empty tokenizer of the architecture's kind where the folder has none.
        raise _unusable("has no tokenizer")
    return tokenizer


def check_folder(folder: Path) -> None:
    """Refuse a folder that lacks files or brings code along."""
    if not (folder / "config.json").is_file():
        raise _unusable("has no config.json: it is not a Hugging Face model folder")
    code = sorted(path.name for path in folder.iterdir() if path.suffix in CODE)
    if code:
        raise _unusable(f"contains code ({', '.join(code)}), which is never run here")
    for name in ("config.json", "tokenizer_config.json"):
        settings = _settings(folder / name) if (folder / name).is_file() else {}
        if "auto_map" in settings:
            raise _unusable(f"asks for code of its own (auto_map in {name}), which is never run here")
        if "quantization_config" in settings:
            raise _unusable("has quantized weights, which cannot be trained; use the original ones")
    missing = sorted(name for name in weight_files(folder) if not (folder / name).is_file())
    if missing:
        raise _unusable(f"lacks {', '.join(missing)}; weights are read from safetensors files only")


def weight_files(folder: Path) -> list[str]:
    """The names of the files that hold a model folder's weights."""
    index = folder / WEIGHTS_INDEX
    return sorted(set(_settings(index).get("weight_map", {}).values())) if index.is_file() else [WEIGHTS]


def _check_stored(folder: Path, names: Mapping[str, str]) -> None:
    """Raises ``ValueError`` unless the weights of adapted layers, called ``names`` there, are in the folder."""
    stored: set[str] = set()
    for file in weight_files(folder):
        with safe_open(folder / file, framework="pt") as opened:
            stored.update(opened.keys())
    lacking = sorted(layer for layer, name in names.items() if name not in stored)
    if lacking:
        raise ValueError(f"the weights of {lacking[:5]} are not in its files by themselves")


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
        raise _unusable(f"has a {path.name} that is not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise _unusable(f"has a {path.name} that is not a JSON object")
    return settings


def _unusable(reason: str) -> RunError:
    return RunError("invalid_model", f"The model's folder {reason}.", param="model")


def _saved_dtype(folder: Path) -> torch.dtype:
    """The dtype the folder's weights are stored in."""
    config = _settings(folder / "config.json")
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise _unusable(f"has weights of dtype {name}, which cannot be trained")
    return dtype


def _stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    usual, found = _saved_dtype(folder), {}
    for file in weight_files(folder):
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                dtype = _DTYPES.get(opened.get_slice(name).get_dtype(), usual)
                if dtype != usual:
                    found[name] = dtype
    return found


def _left_out(folder: Path, model: PreTrainedModel) -> dict[str, str]:
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
            raise _unusable(f"has a generation_config.json that cannot be read: {error}") from error
    ends = sorted(found - {None})
    if not ends:
        raise _unusable("names no end-of-sequence token, in the tokenizer, in config.json or in generation_config.json")
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


def _at(states: Tensor, positions: Tensor) -> Tensor:
    """Rows ``[N, ...]`` of ``[R, W, ...]`` at flat ``positions``; unlike indexing it adds up gradients in order."""
    return states.flatten(0, 1).index_select(0, positions)
