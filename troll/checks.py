"""Checks of what a caller passes in: every error is a ValueError that names the argument and, where it can, the row."""

import math
from numbers import Integral
from typing import get_args

import torch
from torch import Tensor

from troll.rows import Tail


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are accumulated in: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(tensor: Tensor) -> Tensor:
    """`tensor` in float32 at least."""
    return tensor.to(wide_dtype(tensor.dtype))


def summation_dtype(tensor: Tensor) -> torch.dtype:
    """The widest dtype of the tensor's device (Apple's GPUs have no float64)."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: needs a floating point dtype, got {tensor.dtype}")


def integer(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name}: needs an integer dtype, got {tensor.dtype}")


def same_shape(name: str, tensor: Tensor, like: str, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name}: shape {list(tensor.shape)} does not match {like}, which asks for {list(shape)}")


def logits_and_tokens(name: str, logits: Tensor, tokens: Tensor) -> None:
    """`logits` `[..., V]` (or hidden states `[..., H]`) against `tokens` `[...]`."""
    floating(name, logits)
    integer("tokens", tokens)
    if logits.dim() < 1 or logits.shape[-1] == 0:
        raise ValueError(f"{name}: needs a last dimension with entries, got shape {list(logits.shape)}")
    same_shape("tokens", tokens, name, logits.shape[:-1])


def projection_matrix(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """`hidden` `[..., H]`, `weight` `[V, H]`, `bias` `[V]`."""
    floating("weight", weight)
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"weight: shape {list(weight.shape)} does not match hidden, needs [V, {hidden.shape[-1]}]")
    if weight.dtype != hidden.dtype:
        raise ValueError(f"weight: dtype {weight.dtype} does not match hidden, which is {hidden.dtype}")
    if weight.device != hidden.device:
        raise ValueError(f"weight: on {weight.device}, but hidden is on {hidden.device}")
    if bias is not None:
        floating("bias", bias)
        same_shape("bias", bias, "weight", weight.shape[:1])


def finite(name: str, value: float) -> bool:
    """Whether a number is neither NaN nor infinite; what is no number (as YAML reads `1e-5`) is an error."""
    try:
        return math.isfinite(value)
    except TypeError as error:
        raise ValueError(f"{name}: needs a number, got {value!r}") from error


def positive(name: str, value: float) -> None:
    if not (finite(name, value) and value > 0):
        raise ValueError(f"{name}: needs a positive number, got {value}")


def at_least_one(name: str, value: int) -> None:
    if not isinstance(value, Integral):
        raise ValueError(f"{name}: needs a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: needs at least 1, got {value}")


def not_negative(name: str, value: float) -> None:
    if not (finite(name, value) and value >= 0):
        raise ValueError(f"{name}: needs a number of at least 0, got {value}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(choices)}")


def sparsity(
    max_tokens: int, dropped_mass: float, default_prob: float, temperature: float, vocabulary_size: int, tail: str
) -> None:
    """The options that decide what a sparse row keeps."""
    at_least_one("max_tokens", max_tokens)
    if not (finite("dropped_mass", dropped_mass) and 0 <= dropped_mass < 1):
        raise ValueError(f"dropped_mass: needs a value in [0, 1), got {dropped_mass}")
    positive("default_prob", default_prob)
    tail_within_row(default_prob, vocabulary_size)
    positive("temperature", temperature)
    one_of("tail", tail, get_args(Tail))


def tail_within_row(default_prob: float, vocabulary_size: int) -> None:
    """A row of nothing but left-out tokens still has mass to give."""
    if default_prob * vocabulary_size >= 1:
        raise ValueError(
            f"default_prob: {default_prob} for each of {vocabulary_size} tokens is more than the whole mass"
        )


def selected_rows(mask: Tensor | None, tokens: Tensor) -> Tensor:
    """Flat positions `[M]` of the rows a mask (`[...]`, bool or numbers, zero leaves out) selects."""
    if mask is None:
        return torch.arange(tokens.numel(), device=tokens.device)
    same_shape("mask", mask, "tokens", tokens.shape)
    return mask.reshape(-1).nonzero().squeeze(-1)


def tokens_in_vocabulary(tokens: Tensor, rows: Tensor, vocabulary_size: int) -> None:
    """`tokens` `[N]` at `rows` `[M]` lie in `[0, vocabulary_size)`."""
    chosen = tokens[rows]
    outside = (chosen < 0) | (chosen >= vocabulary_size)
    if outside.any():
        first = int(outside.nonzero()[0])
        raise ValueError(
            f"tokens: row {int(rows[first])} holds {int(chosen[first])}, outside the vocabulary of {vocabulary_size}"
        )


def finite_rows(name: str, values: Tensor, rows: Tensor) -> None:
    """One value per row `[M]` (a log-sum-exp, say) that NaN or infinity in the row would show up in."""
    bad = ~torch.isfinite(values)
    if bad.any():
        raise ValueError(f"{name}: row {int(rows[bad.nonzero()[0]])} holds NaN or infinity")


def top_log_probs(
    ids: Tensor, log_probs: Tensor, tokens: Tensor, token_log_probs: Tensor, vocabulary_size: int
) -> None:
    """A sampler's top log-probabilities: `ids`, `log_probs` `[..., C]`; `tokens`, `token_log_probs` `[...]`."""
    logits_and_tokens("log_probs", log_probs, tokens)
    integer("ids", ids)
    same_shape("ids", ids, "log_probs", log_probs.shape)
    floating("token_log_probs", token_log_probs)
    same_shape("token_log_probs", token_log_probs, "tokens", tokens.shape)
    everything = torch.arange(tokens.numel(), device=tokens.device)
    tokens_in_vocabulary(tokens.reshape(-1), everything, vocabulary_size)
    outside = (ids >= vocabulary_size).reshape(tokens.numel(), -1).any(-1)
    if outside.any():
        raise ValueError(
            f"ids: row {int(outside.nonzero()[0])} holds an id outside the vocabulary of {vocabulary_size}"
        )
    finite_rows("token_log_probs", token_log_probs.reshape(-1), everything)
    nan = (torch.isnan(log_probs) | (log_probs > 1e-3)).reshape(tokens.numel(), -1).any(-1)
    if nan.any():
        raise ValueError(f"log_probs: row {int(nan.nonzero()[0])} holds NaN or a probability above 1")


def equal_rows(name: str, like: str, left: Tensor, right: Tensor, rows: Tensor) -> None:
    """`left` and `right` `[M]` agree, row by row."""
    different = left != right
    if different.any():
        row = int(different.nonzero()[0])
        raise ValueError(
            f"{name}: row {int(rows[row])} was made for token {int(left[row])}, but {like} holds {int(right[row])}"
        )


def broadcast_advantages(advantages: Tensor, shape: torch.Size) -> Tensor:
    """Advantages of shape `[...]`, or `[B]` for `[B, T]` tokens, as `[...]`."""
    floating("advantages", advantages)
    if advantages.shape == shape:
        return advantages
    if len(shape) > 1 and advantages.shape in (shape[:-1], (*shape[:-1], 1)):
        return advantages.reshape(*shape[:-1], 1).expand(shape)
    raise ValueError(f"advantages: shape {list(advantages.shape)} does not match tokens, which are {list(shape)}")
