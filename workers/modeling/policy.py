"""The model being trained: any causal language model of transformers.

Weights that are trained are float32. With LoRA these are the adapters' alone; the base's are frozen, and kept in
bfloat16 on a GPU, where they are computed with in no other precision.

Only the positions that predict a response token reach the output matrix. Dropout stays off, so that the old policy and
the new one differ by their weights alone.

N response tokens of a micro-batch, H hidden size, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workers.errors import is_out_of_memory
from workers.modeling import compilation, distributed, lora, model_folder
from workers.modeling.compilation import Compilation, CompilationError
from workers.modeling.lm_head import LogitTransform, recognise
from workers.modeling.lora import Lora
from workers.modeling.precision import autocast
from workers.modeling.recomputation import Recomputation, When
from workers.modeling.rows import Block, Continuation, Readable, collate
from workers.modeling.sharing import longest_shared

FAR_APART = 0.25
"""Of the norm of a model's states: bfloat16 rounds some hundredths away, and wrong code is off by all of it."""


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
        self.saved_dtype = model_folder.saved_dtype(folder)
        self.stored_dtypes = model_folder.stored_dtypes(folder)
        """By the name it has in the folder's files, the dtype of each weight that is stored in another one."""
        self.left_out = {} if adapter else model_folder.left_out(folder, model)
        """What the folder's files hold beside the model, like a vision tower: the file of each weight, by its name."""
        self.context_length = model_folder.context_length(model.config)
        self.stop_ids = model_folder.stop_ids(folder, tokenizer)
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
        self._compilation = Compilation()
        self._recomputation = Recomputation(model, recompute, self.device, self._compilation)
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
            raise model_folder.unusable(model_folder.without_embedding(self.tokenizer, highest, rows, param))

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
        with self._compilation, self._recomputation:
            states = self.backbone(batch.input_ids, **self._arguments(batch))
        return _at(states, batch.positions)

    def logits(self, batch: Readable) -> Tensor:
        """Logits ``[N, V]`` of the response tokens, before any temperature."""
        with autocast(self.device):
            if self.lm_head is not None:
                return self.transform(self.lm_head(self.hidden(batch)))
            with self._compilation, self._recomputation:
                whole = self.model(batch.input_ids, **self._arguments(batch)).logits
            return _at(whole, batch.positions)

    def compile(self) -> None:
        """Have torch compile the layers, for whatever is read from now on, which is rounded otherwise than before.

        That takes seconds. Raises ``CompilationError`` where it cannot be done, or where the states are others than
        they were, and reads on as before.
        """
        plain = self._try_reading()
        try:
            self._compilation.begin(self.model)
            apart = (self._try_reading() - plain).norm() / plain.norm()
            if not apart <= FAR_APART:
                raise CompilationError(f"compiled, they give states {apart:.2g} apart from what they should")
        except Exception as error:
            self._compilation.end()
            if isinstance(error, CompilationError) or is_out_of_memory(error):
                raise
            raise CompilationError(compilation.reason(error)) from error
        finally:
            self.model.zero_grad(set_to_none=True)

    @property
    def compiled(self) -> bool:
        return bool(self._compilation)

    def _try_reading(self) -> Tensor:
        """The states of two short rows, of which gradients are left behind where anything is trained."""
        ids = [(place * 7) % self.vocabulary_size for place in range(12)]
        rows = collate([[Block(ids[:4], [Continuation(ids[4:], range(8))])]] * 2, self.device)
        with torch.enable_grad(), autocast(self.device):
            states = self.logits(rows) if self.lm_head is None else self.hidden(rows)
        if states.requires_grad:
            states.float().sum().backward()
        return states.detach().float()

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
    dtype = torch.bfloat16 if adapters and device.type == "cuda" else torch.float32
    model, tokenizer = model_folder.read(folder, dtype)
    # A rank's device takes its part alone.
    model.to(device if distributed.size() == 1 else "cpu").eval()
    try:
        config = lora.attach(model, adapters) if adapters else None
        if config:
            _check_stored(folder, lora.stored_names(model))
        return Policy(folder, model, tokenizer, config, device=device, recompute=recompute)
    except ValueError as error:
        raise model_folder.unusable(f"has a model that does not take what the job asks for: {error}") from error


def _check_stored(folder: Path, names: Mapping[str, str]) -> None:
    """Raises ``ValueError`` unless the weights of adapted layers, called ``names`` there, are in the folder."""
    stored: set[str] = set()
    for file in model_folder.weight_files(folder):
        with safe_open(folder / file, framework="pt") as opened:
            stored.update(opened.keys())
    lacking = sorted(layer for layer, name in names.items() if name not in stored)
    if lacking:
        raise ValueError(f"the weights of {lacking[:5]} are not in its files by themselves")


def _at(states: Tensor, positions: Tensor) -> Tensor:
    """Rows ``[N, ...]`` of ``[R, W, ...]`` at flat ``positions``."""
    # Answers share their prompt's last position. On a GPU the gradients of indexing and of index_select meet there in
    # no particular order; those of an embedding are added up in order.
    return embedding(positions, states.flatten(0, 1))
