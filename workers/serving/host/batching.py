"""Continuous batching on a transformers model: requests join the batch and leave it between any two tokens.

Rows that cannot share a batch (other adapters, or a model whose layers cannot skip padding) make batches of their own,
which take turns.

A step takes the longer the more rows it has, so that whoever asks little would wait for those who ask much. Where
several organisations are at work, the oldest ``FRONT_ROWS`` of each are in front: they go on in every step. All others
are in the back and have ``BACK_SHARE`` of the time.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from service.inference.wire import Sampling
from workers.bounded.grammars import UnsupportedSchemaError
from workers.modeling.decoder import Decoder
from workers.modeling.model_folder import context_length
from workers.rollouts.grammar import Grammar, Grammars, UnconstrainableError
from workers.serving.host.adapters import Adapters
from workers.serving.host.engine import Engine, Key, Request, RequestRefusedError, Token
from workers.serving.host.sampling import Chooser, choose, score

MAX_ROWS = 256
CACHE_BYTES = 4 << 30
"""Room for keys and values on a machine without GPU; half of what is free on one with."""
FRONT_ROWS = 2
BACK_SHARE = 0.25
MOST_OF_ONE = 0.75
"""Share of the room for rows, and for keys and values, that one organisation may take while others have none."""
PADDING = 2
"""Rows share a batch only if padding makes it at most this many times as large."""


@dataclass
class Row:
    key: Key
    chooser: Chooser
    left: int
    """Tokens it may still say."""
    organization: str
    number: int
    """Its place in the order in which rows came."""


@dataclass
class Batch:
    """Rows that go through the model together, and the logits ``[R, V]`` that their next tokens come from."""

    decoder: Decoder
    rows: list[Row]
    logits: Tensor
    adapter: Path | None
    front: bool


class BatchingEngine(Engine):
    """Any causal language model of transformers, in the precision its weights are stored in.

    Args:
        clock: seconds, of which the back has its share.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._model = model
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        self.context_length = context_length(model.config)
        self.vocabulary_size = int(model.config.get_text_config().vocab_size)
        self._adapters = Adapters(model)
        self._grammars = Grammars(tokenizer, self.vocabulary_size, stop_ids)
        self._waiting: list[tuple[Request, list[Row]]] = []
        self._batches: list[Batch] = []
        self._rows_so_far = 0
        self._credit = 0.0
        """Seconds that the back may take now; negative when it has taken more than its share."""
        self._joinable = False
        """Whether rows of several prompts may share a batch; known once the model has run."""

    def grammar(self, sampling: Sampling, prompt: Sequence[int]) -> Grammar | None:
        if sampling.json_schema is None:
            return None
        try:
            return self._grammars.of(sampling.json_schema)
        except UnconstrainableError as error:
            raise RequestRefusedError(str(error), "response_format") from error
        except UnsupportedSchemaError as error:
            message = f"This JSON schema is not supported: {error}"
            raise RequestRefusedError(message, "response_format", "invalid_json_schema") from error

    def add(self, request: Request) -> None:
        if request.adapter is not None:
            self._adapters.load(request.adapter)
            waiting = {waits.adapter for waits, _ in self._waiting}
            self._adapters.forget_unused(waiting | {batch.adapter for batch in self._batches})
        self._waiting.append((request, [self._row(request, key) for key in request.keys]))

    def _row(self, request: Request, key: Key) -> Row:
        constraint = None if request.grammar is None else request.grammar.start(request.prompt)
        chooser = Chooser(request.sampling, key.choice, constraint)
        self._rows_so_far += 1
        return Row(key, chooser, request.max_tokens, request.organization, self._rows_so_far)

    def drop(self, keys: Sequence[Key]) -> None:
        gone = set(keys)
        for _, rows in self._waiting:
            rows[:] = [row for row in rows if row.key not in gone]
        self._waiting = [(request, rows) for request, rows in self._waiting if rows]
        for batch in self._batches:
            self._keep(batch, [i for i, row in enumerate(batch.rows) if row.key not in gone])
        self._batches = [batch for batch in self._batches if batch.rows]

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._batches)

    @torch.inference_mode()
    def step(self) -> list[Token]:
        began = self._clock()
        tokens = self._run(front=True)
        spent = self._clock() - began
        if not self._has_back():
            self._credit = 0.0
            return tokens
        self._credit += spent * BACK_SHARE / (1 - BACK_SHARE)
        if self._credit >= 0 or not tokens:
            began = self._clock()
            tokens += self._run(front=False)
            # What was not used is not saved up.
            self._credit = min(self._credit, 0.0) - (self._clock() - began)
        return tokens

    def _run(self, *, front: bool) -> list[Token]:
        """The next token of each row that is in front, or in the back."""
        self._arrange()
        self._admit(front)
        self._arrange()
        tokens = [token for batch in self._batches if batch.front is front for token in self._advance(batch)]
        self._batches = [batch for batch in self._batches if batch.rows]
        return tokens

    def _has_back(self) -> bool:
        in_front = self._in_front()
        waiting = (row for _, rows in self._waiting for row in rows)
        running = (row for batch in self._batches for row in batch.rows)
        return any(row.number not in in_front for rows in (waiting, running) for row in rows)

    def _in_front(self) -> set[int]:
        """Numbers of the rows that are in front."""
        rows = [row for _, some in self._waiting for row in some]
        rows += [row for batch in self._batches for row in batch.rows]
        if len({row.organization for row in rows}) <= 1:
            return {row.number for row in rows}
        in_front, counted = set(), Counter[str]()
        for row in sorted(rows, key=lambda row: row.number):
            counted[row.organization] += 1
            if counted[row.organization] <= FRONT_ROWS:
                in_front.add(row.number)
        return in_front

    def _arrange(self) -> None:
        """Put every row where it belongs. Those of a batch that cannot be taken apart go with the oldest."""
        in_front = self._in_front()
        for batch in self._batches[:]:
            belongs = [row.number in in_front for row in batch.rows]
            if not batch.decoder.joinable:
                batch.front = belongs[0]
                continue
            moving = [i for i, front in enumerate(belongs) if front is not batch.front]
            if not moving:
                continue
            index = torch.tensor(moving, device=batch.logits.device)
            rows = [batch.rows[i] for i in moving]
            moved = Batch(batch.decoder.split(index), rows, batch.logits[index], batch.adapter, not batch.front)
            self._keep(batch, [i for i in range(len(batch.rows)) if i not in set(moving)])
            self._batches.append(moved)
        # Batches whose lengths were too different to share one may have grown alike.
        batches, self._batches = self._batches, []
        for batch in batches:
            if batch.rows:
                self._place(batch)

    def _admit(self, front: bool) -> None:
        """Read the prompts that wait and fit, and put them into a batch where they can share one."""
        together = self._next(front)
        if not together:
            return
        adapter = together[0][0].adapter
        self._adapters.use(adapter)
        decoder = Decoder(self._model)
        logits = decoder.read([request.prompt for request, _ in together]).float()
        self._joinable = decoder.joinable
        repeated = [i for i, (_, rows) in enumerate(together) for _ in rows]
        if repeated != list(range(len(together))):
            index = torch.tensor(repeated, device=logits.device)
            decoder.keep(index)
            decoder.trim()
            logits = logits[index]
        self._place(Batch(decoder, [row for _, rows in together for row in rows], logits, adapter, front))

    def _next(self, front: bool) -> list[tuple[Request, list[Row]]]:
        """The requests that are read next, together: the oldest that fits, and those behind it that are much like it.

        With ``front`` those with a row that is in front, else those without.
        """
        in_front = self._in_front()
        together: list[tuple[Request, list[Row]]] = []
        room = _Room(self._batches, self._most_tokens())
        for request, rows in self._waiting:
            if any(row.number in in_front for row in rows) is not front:
                continue
            if not room.take(request, rows) and (together or self._batches):
                if together:
                    break
                continue
            if together and not self._alike([*(first for first, _ in together), request]):
                break
            together.append((request, rows))
        taken = {rows[0].number for _, rows in together}
        self._waiting = [(request, rows) for request, rows in self._waiting if rows[0].number not in taken]
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
            alike = (batch.adapter, batch.front) == (new.adapter, new.front)
            if alike and batch.decoder.joinable and new.decoder.joinable:
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
            if (broken := row.chooser.broken) is not None:
                tokens.append(Token(row.key, token, error=broken))
                continue
            row.left -= 1
            end: Literal["stop", "length"] | None = "stop" if token in self.stop_ids else None if row.left else "length"
            if end is None:
                going.append(i)
            tokens.append(Token(row.key, token, end, *scores.get(i, (0.0, []))))
        self._keep(batch, going)
        if going:
            self._adapters.use(batch.adapter)
            said = torch.tensor([chosen[i] for i in going], device=batch.logits.device)
            batch.logits = batch.decoder.step(said).float()
        return tokens

    def _keep(self, batch: Batch, rows: Sequence[int]) -> None:
        if len(rows) == len(batch.rows):
            return
        batch.rows = [batch.rows[i] for i in rows]
        if rows:
            index = torch.tensor(rows, device=batch.logits.device)
            batch.decoder.keep(index)
            batch.decoder.trim()
            batch.logits = batch.logits[index]


class _Room:
    """Rows and tokens that may still be held, in all and by each organisation."""

    def __init__(self, batches: Sequence[Batch], most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._rows, self._tokens = Counter[str](), Counter[str]()
        for batch in batches:
            _, length = batch.decoder.shape
            for row in batch.rows:
                self._rows[row.organization] += 1
                self._tokens[row.organization] += length

    def take(self, request: Request, rows: Collection[Row]) -> bool:
        """Count these rows as held, where there is room for them."""
        whose, tokens = request.organization, len(rows) * (len(request.prompt) + 1)
        for held, more, most in ((self._rows, len(rows), MAX_ROWS), (self._tokens, tokens, self._most_tokens)):
            alone = held[whose] == 0
            if held.total() + more > most or (not alone and held[whose] + more > MOST_OF_ONE * most):
                return False
        self._rows[whose] += len(rows)
        self._tokens[whose] += tokens
        return True


def _cache_bytes_per_token(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    all_heads = getattr(config, "num_attention_heads", None) or 1
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)
