"""The output layer read tile by tile: what the objective needs of `hidden @ weight.T` without ever holding it.

A scan walks over the vocabulary in tiles small enough to stay in cache, and keeps of every row its peak, its total, its
entropy, its most likely tokens and the values at ids it was asked for. Each row of the output matrix is read once.

M rows, H hidden size, V vocabulary, B columns of a tile, K slots.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from troll import checks, kernels

# A tile's elements: what fits the second-level cache of a few cores, or keeps a GPU busy.
_CPU_TILE, _GPU_TILE = 1 << 20, 1 << 26
_ROWS = 1024
_SEGMENTS = 32


@dataclass(frozen=True)
class Head:
    """How logits come from hidden states: `softcap(scale * (hidden @ weight.T + bias)) / temperature`."""

    weight: Tensor
    """`[V, H]`"""
    bias: Tensor | None = None
    """`[V]`"""
    temperature: float = 1.0
    logit_scale: float = 1.0
    softcap: float | None = None
    """`softcap(x) = cap tanh(x / cap)`, as in Gemma 2."""

    @property
    def vocabulary_size(self) -> int:
        return self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """What logits are computed in."""
        return checks.wide_dtype(self.weight.dtype)

    def detach(self) -> "Head":
        """The same head without gradient."""
        return replace(self, weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())

    def tile_width(self, rows: int) -> int:
        """Columns of a tile for a number of rows; a multiple of the segment count."""
        elements = _CPU_TILE if self.weight.device.type == "cpu" else _GPU_TILE
        width = max(512, elements // max(rows, 1))
        return width - width % _SEGMENTS

    def tiles(self, rows: int) -> list[tuple[int, int]]:
        """First and last column of each tile."""
        width, size = self.tile_width(rows), self.vocabulary_size
        return [(start, min(start + width, size)) for start in range(0, size, width)]

    def tile(self, hidden: Tensor, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Logits `[M, stop - start]` of `hidden` `[M, H]`, at the temperature, in float32 at least."""
        logits = matmul(hidden, self.weight[start:stop].T, out)
        if self.bias is not None:
            logits += self.bias[start:stop]
        if self.softcap is None:
            scale = self.logit_scale / self.temperature
            return logits if scale == 1.0 else logits.mul_(scale)
        return logits.mul_(self.logit_scale / self.softcap).tanh_().mul_(self.softcap / self.temperature)

    def slope(self, logits: Tensor) -> Tensor | float:
        """`d logits / d (hidden @ weight.T)`, from the logits themselves."""
        scale = self.logit_scale / self.temperature
        if self.softcap is None:
            return scale
        return (1.0 - (logits * (self.temperature / self.softcap)).square()) * scale


def matmul(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """`left @ right` summed and returned in float32 at least, also for half precision operands and under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        if left.is_cuda and left.dtype in (torch.float16, torch.bfloat16):
            return torch.mm(left, right, out_dtype=torch.float32)
        left, right = checks.wide(left), checks.wide(right)
        return torch.mm(left, right) if out is None else torch.mm(left, right, out=out)


class Scan(NamedTuple):
    """What a scan over the vocabulary keeps of M rows; logits are at the temperature, not yet shifted."""

    peak: Tensor
    """`[M]` largest logit."""
    log_total: Tensor
    """`[M]` log-sum-exp minus the peak."""
    entropy: Tensor
    """`[M]` nats."""
    values: Tensor
    """`[M, C]` logits at the ids asked for."""
    top_values: Tensor
    """`[M, k]` largest logits, falling."""
    top_ids: Tensor
    """`[M, k]`"""


def scan(hidden: Tensor, head: Head, ids: Tensor, top: int, chunk_size: int | None = None) -> Scan:
    """Reads rows `hidden` `[M, H]` against the whole vocabulary, at most `chunk_size` rows at a time.

    Args:
        ids: `[M, C]` token ids whose logits are wanted; negative ids read as -inf.
        top: how many of the most likely tokens to find; 0 for none.
    """
    step = _ROWS if chunk_size is None else chunk_size
    checks.at_least_one("chunk_size", step)
    parts = [_scan(hidden[i : i + step], head, ids[i : i + step], top) for i in range(0, len(hidden), step)]
    if not parts:
        parts = [_scan_nothing(hidden, head, ids, top)]
    return Scan(*(torch.cat(column) if len(column) > 1 else column[0] for column in zip(*parts, strict=True)))


def _scan_nothing(hidden: Tensor, head: Head, ids: Tensor, top: int) -> Scan:
    none = hidden.new_empty(0, dtype=head.dtype)
    slots = min(top, head.vocabulary_size)
    return Scan(none, none, none, none.reshape(0, ids.shape[1]), none.reshape(0, slots), ids.new_empty(0, slots))


def _scan(hidden: Tensor, head: Head, ids: Tensor, top: int) -> Scan:
    rows, lowest = len(hidden), torch.finfo(head.dtype).min
    if kernels.available(hidden, top):
        scanner = kernels.scanner(ids, min(top, head.vocabulary_size))
        for start, stop in head.tiles(rows):
            scanner.see(head.tile(hidden, start, stop), start)
        return Scan(*scanner.result())
    peak = hidden.new_full((rows,), lowest, dtype=head.dtype)
    total, moment = torch.zeros_like(peak), torch.zeros_like(peak)
    values = peak.new_full(ids.shape, -torch.inf)
    leaders = _Leaders(rows, min(top, head.vocabulary_size), peak)
    buffers: dict[int, tuple[Tensor, Tensor]] = {}
    for start, stop in head.tiles(rows):
        width = stop - start
        if width not in buffers:
            buffers[width] = (peak.new_empty(rows, width), peak.new_empty(rows, width))
        logits = head.tile(hidden, start, stop, buffers[width][0])
        local = ids - start
        inside = (local >= 0) & (local < width)
        values = torch.where(inside, logits.gather(1, local.clamp(0, width - 1)), values)
        highest = torch.maximum(peak, leaders.see(logits, start))
        logits.sub_(highest.unsqueeze(-1))
        weights = torch.exp(logits, out=buffers[width][1])
        # Peaks start at a finite value, so that a tile of nothing but -inf leaves everything as it is.
        drop = torch.where(total > 0, peak - highest, 0.0)
        fade = drop.exp()
        moment = fade * (moment + drop * total) + _first_moment(weights, logits)
        total, peak = fade * total + weights.sum(-1), highest
    log_total = total.log()
    top_values, top_ids = leaders.result()
    return Scan(peak, log_total, log_total - moment / total, values, top_values, top_ids)


def _first_moment(weights: Tensor, logits: Tensor) -> Tensor:
    """`sum(weights * logits)` per row, where a weight of zero outweighs a logit of -inf."""
    moment: Tensor = torch.linalg.vecdot(weights, logits)
    if moment.isnan().any():
        moment = torch.linalg.vecdot(weights, logits.clamp(min=torch.finfo(logits.dtype).min))
    return moment


class _Leaders:
    """The `top` largest logits of every row so far.

    Every tile is first reduced to the maxima of short segments, which costs what finding its peak would; only segments
    whose maximum beats the row's last place are looked into. What they hold waits in a list until there is enough of
    it to be worth a merge, so the last place is at times a little low, which is safe.
    """

    def __init__(self, rows: int, top: int, like: Tensor) -> None:
        self.top = top
        self.values = like.new_full((rows, top), -torch.inf)
        self.ids = torch.full((rows, top), -1, dtype=torch.int64, device=like.device)
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self.waiting_size = 0

    def see(self, logits: Tensor, start: int) -> Tensor:
        """Takes in a tile `[M, B]` that begins at column `start`; returns its peaks `[M]`."""
        rows, width = logits.shape
        if width % _SEGMENTS or not self.top or start == 0:
            if self.top:
                self._take_all(logits, start)
            return logits.amax(-1)
        segments = logits.view(rows, _SEGMENTS, width // _SEGMENTS)
        maxima = segments.amax(1)
        row, segment = (maxima > self.values[:, -1:]).nonzero(as_tuple=True)
        found = segments[row, :, segment]
        hit, lane = (found > self.values[row, -1:]).nonzero(as_tuple=True)
        self._wait(row[hit], found[hit, lane], lane * (width // _SEGMENTS) + segment[hit] + start)
        return maxima.amax(-1)

    def _take_all(self, logits: Tensor, start: int) -> None:
        values, ids = logits.topk(min(self.top, logits.shape[1]), -1)
        self._merge_columns(values, ids + start)

    def _wait(self, rows: Tensor, values: Tensor, ids: Tensor) -> None:
        self.waiting.append((rows, values, ids))
        self.waiting_size += len(rows)
        if self.waiting_size > self.values.numel():
            self._merge_waiting()

    def _merge_waiting(self) -> None:
        if not self.waiting_size:
            return
        rows, values, ids = (torch.cat(column) for column in zip(*self.waiting, strict=True))
        self.waiting, self.waiting_size = [], 0
        rows, order = rows.sort(stable=True)
        counts = torch.bincount(rows, minlength=len(self.values))
        place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        wide = self.values.new_full((len(counts), int(counts.max())), -torch.inf)
        wide_ids = self.ids.new_full(wide.shape, -1)
        wide[rows, place], wide_ids[rows, place] = values[order], ids[order]
        self._merge_columns(wide, wide_ids)

    def _merge_columns(self, values: Tensor, ids: Tensor) -> None:
        everything = torch.cat([self.values, values], -1)
        self.values, place = everything.topk(self.top, -1)
        self.ids = torch.cat([self.ids, ids], -1).gather(-1, place)

    def result(self) -> tuple[Tensor, Tensor]:
        """Values and ids `[M, top]`, falling."""
        self._merge_waiting()
        return self.values, self.ids
