"""Continuous batching on a transformers model: requests join the batch and leave it between any two tokens.

Rows that cannot share a batch (other adapters, or a model whose layers cannot skip padding) make batches of their own,
which take turns.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workers.serving.host.adapters import Adapters
from workers.serving.host.decoder import Decoder
from workers.serving.host.engine import Engine, Key, Request, Token
from workers.serving.host.grammar import Constraint, Grammars
from workers.serving.host.sampling import Chooser, choose, score
from workers.training.policy import context_length

MAX_ROWS = 256
CACHE_BYTES = 4 << 30
"""Room for keys and values on a machine without GPU; half of what is free on one with."""
PADDING = 2
"""Rows share a batch only if padding makes it at most this many times as large."""


@dataclass
class Row:
    key: Key
    chooser: Chooser
    left: int
    """Tokens it may still say."""


@dataclass
class Batch:
    """Rows that go through the model together, and the logits ``[R, V]`` that their next tokens come from."""

    decoder: Decoder
    rows: list[Row]
    logits: Tensor
    adapter: Path | None


class BatchingEngine(Engine):
    """Any causal language model of transformers, in the precision its weights are stored in."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> None:
        self._model = model
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        self.context_length = context_length(model.config)
        self.vocabulary_size = int(model.config.get_text_config().vocab_size)
        self._adapters = Adapters(model)
        self._grammars = Grammars(tokenizer, self.vocabulary_size)
        self._waiting: deque[tuple[Request, list[Row]]] = deque()
        self._batches: list[Batch] = []
        self._joinable = False
        """Whether rows of several prompts may share a batch; known once the model has run."""

    def add(self, request: Request) -> None:
        if request.adapter is not None:
            self._adapters.load(request.adapter)
            waiting = {waits.adapter for waits, _ in self._waiting}
            self._adapters.forget_unused(waiting | {batch.adapter for batch in self._batches})
        rows = [
            Row(key, Chooser(request.sampling, key.choice, self._constraint(request)), request.max_tokens)
            for key in request.keys
        ]
        self._waiting.append((request, rows))

    def drop(self, keys: Sequence[Key]) -> None:
        gone = set(keys)
        for _, rows in self._waiting:
            rows[:] = [row for row in rows if row.key not in gone]
        self._waiting = deque((request, rows) for request, rows in self._waiting if rows)
        for batch in self._batches:
            self._keep(batch, [i for i, row in enumerate(batch.rows) if row.key not in gone])
        self._batches = [batch for batch in self._batches if batch.rows]

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._batches)

    @torch.inference_mode()
    def step(self) -> list[Token]:
        self._admit()
        tokens = [token for batch in self._batches for token in self._advance(batch)]
        self._batches = [batch for batch in self._batches if batch.rows]
        return tokens

    def _constraint(self, request: Request) -> Constraint | None:
        schema = request.sampling.json_schema
        return None if schema is None else self._grammars.constraint(schema, reasons=request.reasons)

    def _admit(self) -> None:
        """Read the prompts that wait and fit, and put them into a batch where they can share one."""
        together = self._next()
        if not together:
            return
        adapter = together[0][0].adapter
        self._adapters.use(adapter)
        decoder = Decoder(self._model)
        logits = decoder.read([request.prompt for request, _ in together])
        self._joinable = decoder.joinable
        repeated = [i for i, (_, rows) in enumerate(together) for _ in rows]
        if repeated != list(range(len(together))):
            index = torch.tensor(repeated, device=logits.device)
            decoder.keep(index)
            logits = logits[index]
        self._place(Batch(decoder, [row for _, rows in together for row in rows], logits, adapter))

    def _next(self) -> list[tuple[Request, list[Row]]]:
        """The requests that are read next, together: the oldest, and those behind it that are much like it."""
        together: list[tuple[Request, list[Row]]] = []
        held = sum(rows * length for rows, length in (batch.decoder.shape for batch in self._batches))
        running = sum(len(batch.rows) for batch in self._batches)
        while self._waiting:
            request, rows = self._waiting[0]
            running, held = running + len(rows), held + len(rows) * (len(request.prompt) + 1)
            full = running > MAX_ROWS or held > self._most_tokens()
            if full and (together or self._batches):
                break
            if together and not self._alike([*(first for first, _ in together), request]):
                break
            together.append(self._waiting.popleft())
        return together

    def _alike(self, requests: Sequence[Request]) -> bool:
        lengths = [len(request.prompt) for request in requests]
        same = all(request.adapter == requests[0].adapter for request in requests)
        return self._joinable and same and max(lengths) * len(lengths) <= PADDING * sum(lengths)

    def _most_tokens(self) -> int:
        device = self._model.device
        room = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CACHE_BYTES
        return room // _cache_bytes_per_token(self._model)

    def _place(self, new: Batch) -> None:
        for batch in self._batches:
            if batch.adapter == new.adapter and batch.decoder.joinable and new.decoder.joinable:
                (rows, length), (new_rows, new_length) = batch.decoder.shape, new.decoder.shape
                whole = (rows + new_rows) * max(length, new_length)
                if whole <= PADDING * (rows * length + new_rows * new_length):
                    batch.decoder.join(new.decoder)
                    batch.rows += new.rows
                    batch.logits = torch.cat([batch.logits, new.logits])
                    return
        self._batches.append(new)

    def _advance(self, batch: Batch) -> list[Token]:
        """Choose each row's next token, drop the rows that end with it and compute the next logits of the others."""
        choosers = [row.chooser for row in batch.rows]
        chosen = choose(batch.logits, choosers)
        scores = score(batch.logits, chosen, choosers)
        tokens, going = [], []
        for i, (row, token) in enumerate(zip(batch.rows, chosen, strict=True)):
            row.left -= 1
            end: Literal["stop", "length"] | None = "stop" if token in self.stop_ids else None if row.left else "length"
            if end is None:
                going.append(i)
            tokens.append(Token(row.key, token, end, *scores.get(i, (0.0, []))))
        self._keep(batch, going)
        if going:
            self._adapters.use(batch.adapter)
            said = torch.tensor([chosen[i] for i in going], device=batch.logits.device)
            batch.logits = batch.decoder.step(said)
        return tokens

    def _keep(self, batch: Batch, rows: Sequence[int]) -> None:
        if len(rows) == len(batch.rows):
            return
        batch.rows = [batch.rows[i] for i in rows]
        if rows:
            index = torch.tensor(rows, device=batch.logits.device)
            batch.decoder.keep(index)
            batch.logits = batch.logits[index]


def _cache_bytes_per_token(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    all_heads = getattr(config, "num_attention_heads", None) or 1
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    return 2 * int(config.num_hidden_layers) * int(heads) * int(size) * model.dtype.itemsize
