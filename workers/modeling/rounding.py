"""Weights trained in float32, written down in 16 bits.

Rounded to the nearest, weights of 16 bits stay where they are until they have moved by half of the distance to the next
one, and most of what small learning rates have taught is lost. Rounded stochastically, each is what was trained on
average, and so are the sums over thousands of them that a layer computes.

    w between neighbours a and b of 16 bits:   P(b) = (w - a) / (b - a)
"""

import zlib

import torch
from torch import Tensor

_CHUNK = 1 << 20
_SIGN = torch.iinfo(torch.int16).min
"""The bit pattern of -0."""


def stochastically(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """``tensor`` in ``dtype``, rounded stochastically where that is of 16 bits; what fits exactly stays as it is.

    The random numbers follow from ``name``: weights of one name are rounded alike in every checkpoint and result.
    """
    if dtype not in (torch.bfloat16, torch.float16) or tensor.dtype == dtype:
        return tensor.to(dtype)
    rounded = torch.empty(tensor.shape, dtype=dtype)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    uniform = torch.empty(_CHUNK, dtype=torch.int32)
    flat = tensor.cpu().reshape(-1)
    for part, out in zip(flat.split(_CHUNK), rounded.view(-1).split(_CHUNK), strict=True):
        drawn = uniform[: len(part)].random_(0, 1 << 16, generator=generator)
        out.copy_(_rounded(part.float(), dtype, drawn))
    return rounded


def _rounded(exact: Tensor, dtype: torch.dtype, drawn: Tensor) -> Tensor:
    """``exact`` float32, ``drawn`` uniform below 2^16."""
    if dtype == torch.bfloat16 and bool(exact.abs().max() <= torch.finfo(dtype).max):
        # bfloat16 is the upper half of float32: what the lower half comes to goes up that often.
        return ((exact.contiguous().view(torch.int32) + drawn) & -(1 << 16)).view(torch.float32)
    nearest = exact.to(dtype)
    error = exact - nearest.float()
    # One step in the bit pattern is the next number away from 0, or towards it; from 0 it is the error's own side.
    bits = torch.where(nearest == 0, torch.where(error < 0, _SIGN, 0).to(torch.int16), nearest.view(torch.int16))
    outward = (nearest == 0) | ((error > 0) == (nearest > 0))
    other = (bits + torch.where(outward, 1, -1).to(torch.int16)).view(dtype)
    # Beside the largest number stands infinity, which is infinitely far away.
    share = error.abs() / (other.float() - nearest.float()).abs()
    return torch.where((error != 0) & (drawn < share * (1 << 16)), other, nearest)
