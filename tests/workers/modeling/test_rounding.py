"""Stochastic rounding: to one of two neighbours, right on average, the same each time."""

import math

import pytest
import torch
from torch import Tensor

from workers.modeling import rounding

DTYPES = [torch.bfloat16, torch.float16]
HALVES = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def neighbours(value: float, dtype: torch.dtype) -> set[float]:
    """The numbers of ``dtype`` on both sides of ``value``, or it alone: found among all of them."""
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype).float()
    every = every[every.isfinite()]
    return {float(every[every <= value].max()), float(every[every >= value].min())}


@HALVES
@pytest.mark.parametrize("value", [1.001, -1.001, 1 / 3, -2e-3, 255.9, -6e4, 3e-8, -3e-8, 1e-4, -0.99999])
def test_a_weight_becomes_one_of_its_two_neighbours(dtype: torch.dtype, value: float) -> None:
    exact = torch.full((2000,), value)
    found = set(rounding.stochastically(exact, dtype, "weight").float().tolist())
    assert found == neighbours(float(exact[0]), dtype)


@HALVES
def test_the_mean_of_many_is_what_was_trained(dtype: torch.dtype) -> None:
    values = [1.0005, -0.7501, 0.1 + 1e-5, -3e-3]
    exact = torch.tensor(values).repeat_interleave(1 << 16).reshape(4, -1)
    rounded = rounding.stochastically(exact, dtype, "weight").double()
    for row, value in zip(rounded, exact[:, 0].tolist(), strict=True):
        step = max(neighbours(value, dtype)) - min(neighbours(value, dtype))
        # Five standard deviations of the mean of as many draws between two numbers that far apart.
        assert abs(float(row.mean()) - value) < 5 * step / 2 / math.sqrt(1 << 16)


@HALVES
def test_what_fits_stays_as_it_is(dtype: torch.dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    rounded = rounding.stochastically(every.float(), dtype, "weight")
    assert torch.equal(rounded.view(torch.int16), every.view(torch.int16))


@HALVES
def test_nothing_becomes_infinite_that_the_dtype_can_say(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert rounding.stochastically(torch.full((1000,), largest * (1 + 1e-5)), dtype, "weight").isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wider_dtypes_take_it_whole(dtype: torch.dtype) -> None:
    exact = torch.linspace(-1, 1, 999)
    assert torch.equal(rounding.stochastically(exact, dtype, "weight"), exact.to(dtype))


def test_a_name_is_rounded_alike_each_time_and_names_unlike() -> None:
    exact = torch.full((1000,), 1.001)

    def rounded(name: str) -> Tensor:
        return rounding.stochastically(exact, torch.bfloat16, name)

    assert torch.equal(rounded("a"), rounded("a"))
    assert not torch.equal(rounded("a"), rounded("b"))


def test_parts_of_a_large_tensor_are_rounded_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.linspace(-2, 2, 1001).reshape(7, 143).T
    monkeypatch.setattr(rounding, "_CHUNK", 100)
    rounded = rounding.stochastically(exact, torch.bfloat16, "weight")
    assert rounded.shape == exact.shape
    assert float((rounded.float() - exact).abs().max()) < 2 * 2**-7
