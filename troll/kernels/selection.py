# mypy: disallow-untyped-defs=False, check-untyped-defs=False
"""Kernels that select: peak, total, entropy and most likely tokens of every row of logits, a tile at a time.

Finding the top of a row needs no sort of it. The first kernel reduces a tile to the maxima of short segments, and on
the way to each block's peak and sums. No more than `top` segments can hold a token of the top, and the second kernel,
one program per row, looks into those with the largest maxima alone, until a maximum lies below the last place found.

A token on the list is one int64: its logit, as an integer of the same order, above its inverted id, so that comparing
integers compares logits and, where they are equal, prefers the lower id.

M rows, B columns of a tile, C wanted ids.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_SEGMENT = 128
_SEGMENTS = 32
_BLOCK = _SEGMENT * _SEGMENTS
# Segments looked into at a time.
_GROUP = 8
# A tile may have this many columns: what one program's list of segment maxima holds.
_MAX_COLUMNS = 1 << 18
_LOWEST = torch.finfo(torch.float32).min
# The key of a logit of -inf, below which there is only NaN, with id -1.
_EMPTY = -0x7F800001 << 32


@triton.jit
def _key(values, ids):
    """Sortable int64 of float32 `values` and int32 `ids`."""
    bits = values.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | ((~ids).to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def _load_logits(logits, offsets, inside, temperature):
    """Logits at the temperature, in float32, -inf outside."""
    x = tl.load(logits + offsets, mask=inside, other=-float("inf")).to(tl.float32)
    # Large logits would feel the two roundings of a GPU's plain division.
    return tl.div_rn(x, tl.zeros_like(x) + temperature)


@triton.jit
def read_blocks(
    logits,
    rows,
    maxima,
    peaks,
    totals,
    moments,
    stride,
    columns,
    temperature,
    HAS_ROWS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    LOWEST: tl.constexpr,
):
    """One block of a row: its segments' maxima, its peak, and below the peak its sum and first moment."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    blocks = tl.num_programs(1)
    source = row
    if HAS_ROWS:
        source = tl.load(rows + row)
    segment = tl.arange(0, SEGMENTS)
    column = (block * SEGMENTS + segment[:, None]) * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    x = _load_logits(logits, source * stride + column, column < columns, temperature)
    highest = tl.max(x, axis=1)
    tl.store(maxima + row * blocks * SEGMENTS + block * SEGMENTS + segment, highest)
    # A block of nothing but -inf has a finite peak too, and then a sum of zero.
    peak = tl.maximum(tl.max(highest, axis=0), LOWEST)
    shifted = x - peak
    weight = tl.exp(shifted)
    total = tl.sum(tl.sum(weight, axis=1), axis=0)
    moment = tl.sum(tl.sum(weight * tl.maximum(shifted, LOWEST), axis=1), axis=0)
    tl.store(peaks + row * blocks + block, peak)
    tl.store(totals + row * blocks + block, total)
    tl.store(moments + row * blocks + block, moment)


@triton.jit
def merge_tile(
    logits,
    rows,
    maxima,
    peaks,
    totals,
    moments,
    peak,
    total,
    moment,
    leaders,
    ids,
    values,
    stride,
    start,
    columns,
    blocks,
    wanted,
    temperature,
    HAS_ROWS: tl.constexpr,
    TOP: tl.constexpr,
    BLOCKS: tl.constexpr,
    WANTED: tl.constexpr,
    GROUP: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    EMPTY: tl.constexpr,
):
    """Takes a tile of one row into the row's running peak, sums, leaders, and values at wanted ids."""
    row = tl.program_id(0).to(tl.int64)
    source = row
    if HAS_ROWS:
        source = tl.load(rows + row)
    base = logits + source * stride
    _merge_sums(row, peaks, totals, moments, peak, total, moment, blocks, BLOCKS)
    place = tl.arange(0, WANTED)
    local = tl.load(ids + row * wanted + place, mask=place < wanted, other=-1) - start
    inside = (local >= 0) & (local < columns)
    found = _load_logits(base, local, inside, temperature)
    tl.store(values + row * wanted + place, found, mask=inside)
    if TOP > 0:
        _merge_leaders(
            row,
            base,
            maxima,
            leaders,
            start,
            columns,
            blocks,
            temperature,
            TOP,
            BLOCKS,
            GROUP,
            SEGMENTS,
            SEGMENT,
            EMPTY,
        )


@triton.jit
def _merge_sums(row, peaks, totals, moments, peak, total, moment, blocks, BLOCKS: tl.constexpr):
    block = tl.arange(0, BLOCKS)
    inside = block < blocks
    old_peak, old_total = tl.load(peak + row), tl.load(total + row)
    tile_peaks = tl.load(peaks + row * blocks + block, mask=inside, other=-float("inf"))
    tile_totals = tl.load(totals + row * blocks + block, mask=inside, other=0.0)
    tile_moments = tl.load(moments + row * blocks + block, mask=inside, other=0.0)
    highest = tl.maximum(tl.max(tile_peaks, axis=0), old_peak)
    # A part without mass has no say, however far below the peak it starts.
    drop = tl.where(inside & (tile_totals != 0), tile_peaks - highest, 0.0)
    old_drop = tl.where(old_total != 0, old_peak - highest, 0.0)
    fade, old_fade = tl.exp(drop), tl.exp(old_drop)
    first = tl.sum(fade * (tile_moments + drop * tile_totals), axis=0)
    tl.store(moment + row, first + old_fade * (tl.load(moment + row) + old_drop * old_total))
    tl.store(total + row, tl.sum(fade * tile_totals, axis=0) + old_fade * old_total)
    tl.store(peak + row, highest)


@triton.jit
def _merge_leaders(
    row,
    base,
    maxima,
    leaders,
    start,
    columns,
    blocks,
    temperature,
    TOP: tl.constexpr,
    BLOCKS: tl.constexpr,
    GROUP: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    EMPTY: tl.constexpr,
):
    place = tl.arange(0, TOP)
    best = tl.load(leaders + row * TOP + place)
    segment = tl.arange(0, BLOCKS * SEGMENTS)
    highest = tl.load(maxima + row * blocks * SEGMENTS + segment, mask=segment < blocks * SEGMENTS, other=-float("inf"))
    order = tl.topk(_key(highest, segment), TOP)
    first = tl.zeros([], tl.int32)
    # Keys compare by their upper halves here: the lower ones number tokens on one side and segments on the other.
    last_place = tl.min(best, axis=0) >> 32
    promise = tl.max(order, axis=0) >> 32
    while (first < TOP) & (promise > last_place):
        lane = first + tl.arange(0, GROUP)
        chosen = tl.sum(tl.where(place[None, :] == lane[:, None], order[None, :], 0), axis=1)
        chosen = tl.where(lane < TOP, (~chosen).to(tl.int32), BLOCKS * SEGMENTS)
        column = chosen[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
        x = _load_logits(base, column, column < columns, temperature)
        keys = tl.where((column < columns) & (x == x), _key(x, start + column), EMPTY)
        fresh = tl.topk(tl.reshape(keys, [GROUP * SEGMENT]), TOP)
        best = tl.topk(tl.reshape(tl.join(best, fresh), [2 * TOP]), TOP)
        first += GROUP
        last_place = tl.min(best, axis=0) >> 32
        promise = tl.max(tl.where(place == first, order, EMPTY), axis=0) >> 32
    tl.store(leaders + row * TOP + place, best)


@triton.jit
def keep_mass(
    top_ids,
    top_log_probs,
    tokens,
    token_log_probs,
    ids,
    log_probs,
    candidates,
    enough: tl.float64,
    spare,
    SLOTS: tl.constexpr,
):
    """The smallest leading set of a row's sorted candidates that holds enough mass, behind the sampled token."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, SLOTS)
    inside = place < candidates
    candidate = tl.load(top_ids + row * candidates + place, mask=inside, other=-1)
    value = tl.load(top_log_probs + row * candidates + place, mask=inside, other=-float("inf"))
    token = tl.load(tokens + row)
    mass = tl.exp(value.to(tl.float64))
    before = tl.cumsum(mass, axis=0) - mass
    needed = tl.sum((inside & (before < enough)).to(tl.int32), axis=0)
    wanted = (place < needed + spare) & (candidate != token) & (value > -float("inf"))
    out = row * (candidates + 1)
    tl.store(ids + out, token)
    tl.store(log_probs + out, tl.load(token_log_probs + row))
    tl.store(ids + out + 1 + place, tl.where(wanted, candidate, -1), mask=inside)
    tl.store(log_probs + out + 1 + place, tl.where(wanted, value, -float("inf")), mask=inside)


class Scanner:
    """What `troll.head` keeps of rows that it reads a tile of logits at a time."""

    def __init__(self, ids: Tensor, top: int, rows: Tensor | None = None, temperature: float = 1.0) -> None:
        """For M rows of logits, or rows `rows` `[M]` of a larger tensor; `ids` `[M, C]` and `top` as in a scan."""
        number, device = len(ids), ids.device
        self.ids, self.rows, self.temperature = ids.contiguous(), rows, float(temperature)
        self.top, self.width = top, max(2, triton.next_power_of_2(top)) if top else 0
        self.columns = 0
        self.peak = torch.full((number,), _LOWEST, device=device)
        self.total, self.moment = torch.zeros(2, number, device=device)
        self.values = torch.full(ids.shape, -torch.inf, device=device)
        self.leaders = torch.full((number, self.width), _EMPTY, dtype=torch.int64, device=device)

    def see(self, logits: Tensor, start: int) -> None:
        """Takes in columns `start` to `start + B`: `[M, B]`, or rows `self.rows` of `[N, B]`; unit column stride."""
        for first in range(0, logits.shape[1], _MAX_COLUMNS):
            self._see(logits[:, first : first + _MAX_COLUMNS], start + first)
        self.columns += logits.shape[1]

    def _see(self, logits: Tensor, start: int) -> None:
        number, columns = len(self.ids), logits.shape[1]
        if not number:
            return
        blocks = triton.cdiv(columns, _BLOCK)
        maxima = self.peak.new_empty(number, blocks * _SEGMENTS)
        parts = self.peak.new_empty(3, number, blocks)
        # A program's list of segments has to be at least as long as the list of leaders.
        padded = max(triton.next_power_of_2(blocks), triton.cdiv(self.width, _SEGMENTS))
        rows = self.ids if self.rows is None else self.rows
        shared: dict[str, Any] = {"HAS_ROWS": self.rows is not None, "SEGMENTS": _SEGMENTS, "SEGMENT": _SEGMENT}
        with torch.cuda.device_of(logits):
            read_blocks[(number, blocks)](
                logits, rows, maxima, *parts, logits.stride(0), columns, self.temperature, **shared, LOWEST=_LOWEST
            )
            merge_tile[(number,)](
                logits,
                rows,
                maxima,
                *parts,
                self.peak,
                self.total,
                self.moment,
                self.leaders,
                self.ids,
                self.values,
                logits.stride(0),
                start,
                columns,
                blocks,
                self.ids.shape[1],
                self.temperature,
                **shared,
                TOP=self.width,
                BLOCKS=padded,
                WANTED=triton.next_power_of_2(self.ids.shape[1]),
                GROUP=max(_GROUP, triton.cdiv(self.width, _SEGMENT)),
                EMPTY=_EMPTY,
            )

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Peak, log-total and entropy `[M]`, values at the wanted ids, and the most likely tokens' values and ids."""
        log_total = self.total.log()
        leaders = self.leaders[:, : min(self.top, self.columns)]
        ordered = (leaders >> 32).int()
        top_values = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
        top_ids = (~leaders).int().long()
        return self.peak, log_total, log_total - self.moment / self.total, self.values, top_values, top_ids


def scan_logits(logits: Tensor, rows: Tensor, ids: Tensor, top: int, temperature: float) -> tuple[Tensor, ...]:
    """A scan of rows `rows` `[M]` of `logits` `[N, V]`; see `troll.kernels.scan_logits`."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    scanner = Scanner(ids, top, rows, temperature)
    scanner.see(logits, 0)
    return scanner.result()


def keep(
    top_ids: Tensor, top_log_probs: Tensor, tokens: Tensor, token_log_probs: Tensor, dropped_mass: float, spare: int = 0
) -> tuple[Tensor, Tensor]:
    """`troll.sparse.keep`: ids and log-probabilities `[M, C + 1]` with the sampled token in slot 0."""
    number, candidates = top_ids.shape
    ids = top_ids.new_empty(number, candidates + 1)
    log_probs = top_log_probs.new_empty(number, candidates + 1)
    if number:
        with torch.cuda.device_of(top_ids):
            keep_mass[(number,)](
                top_ids.contiguous(),
                top_log_probs.contiguous(),
                tokens.contiguous(),
                token_log_probs.contiguous(),
                ids,
                log_probs,
                candidates,
                1.0 - dropped_mass,
                spare,
                SLOTS=triton.next_power_of_2(candidates),
            )
    return ids, log_probs
