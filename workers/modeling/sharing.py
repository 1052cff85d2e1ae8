"""Whether a model reads answers that share rows with others as it reads them alone: found out by doing both.

A model that keeps a recurrent state, or makes masks or positions of its own, cannot; whatever its name, it shows here.
What leaks from one answer into the next may be less than bfloat16 rounds away, so it is looked for in the gradient:
that of a state with respect to a token it does not see is exactly 0, as the token's weight is, and else it is not.

R rows of width W, N response tokens.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from workers.modeling.rows import Block, Continuation, Layout, Rows, collate

UNBOUNDED = 1 << 20
# Prompts and continuations: two that share a prompt, and two that share a row.
_PROBE = [
    [([1, 2, 3], [4, 5, 6, 7]), ([1, 2, 3], [3, 1, 9, 2])],
    [([2, 1], [5, 0, 11]), ([3, 0], [1, 7, 10])],
]
_WINDOWS = ("window", "window_size", "chunk_size", "local_attention")


def longest_shared(model: PreTrainedModel, read: Callable[[Rows], Tensor]) -> int:
    """The longest sample that may share a row, 0 for none; ``read`` gives the states ``[N, ...]`` of rows."""
    text = model.config.get_text_config()

    def block(prompt: list[int], *answers: list[int]) -> Block:
        known = [[token % text.vocab_size for token in answer] for answer in answers]
        return Block(prompt, [Continuation(ids, range(len(ids))) for ids in known])

    (same_prompt, same_row) = _PROBE
    apart = collate([[block(*pair)] for pair in (*same_prompt, *same_row)], model.device)
    shared = [block(same_prompt[0][0], *(answer for _, answer in same_prompt))]
    together = collate([shared, [block(*pair) for pair in same_row]], model.device)
    try:
        alike = _reads_alike(read, apart, together) and _isolates(read, together, model.get_input_embeddings())
    except Exception:
        # Whatever a model has against masks and positions of ours, it is read without them.
        return 0
    return _attention_window(text) if alike else 0


@torch.no_grad()
def _reads_alike(read: Callable[[Rows], Tensor], rows_apart: Rows, together: Rows) -> bool:
    """Whether states are the same but for rounding, and the positions that are given are those that are used."""
    apart, shared, moved = read(rows_apart), read(together), read(_moved(together))
    # Of the root mean square; kernels round differently, and 64 layers of bfloat16 add up to several percent.
    tolerance = torch.finfo(apart.dtype).eps ** 0.5
    close = bool((shared.float() - apart.float()).norm() <= tolerance * apart.float().norm())
    # A model that overlooks positions gives the very same bits.
    return close and not torch.equal(moved, shared)


def _moved(batch: Rows) -> Rows:
    """The same, but with positions in the row in place of those in a sample."""
    assert batch.layout is not None
    in_row = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device).expand_as(batch.input_ids)
    return replace(batch, layout=replace(batch.layout, position_ids=in_row))


@torch.enable_grad()
def _isolates(read: Callable[[Rows], Tensor], together: Rows, embedding: nn.Module) -> bool:
    """Whether the states of each row's last answer depend on nothing but the tokens it sees.

    Raises ``RuntimeError`` where they do not come from ``embedding``.
    """
    embedded: list[Tensor] = []

    def record(_module: nn.Module, _given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = embedding.register_forward_hook(record)
    try:
        states = read(together)
    finally:
        hook.remove()
    # The probe's answers come two to a row.
    last = together.sequence_ids % 2 == 1
    # Equal weights would cancel: what leaves a layer norm has a constant sum.
    weights = torch.randn(states[last].shape, generator=torch.Generator().manual_seed(0)).to(states)
    (gradient,) = torch.autograd.grad(states[last], embedded, weights)
    influences = (gradient != 0).any(-1)
    assert together.layout is not None
    seen = _seen(together.layout, together.positions[last])
    return bool(influences[seen].any()) and not bool(influences[~seen].any())


def _seen(layout: Layout, positions: Tensor) -> Tensor:
    """``[R, W]`` bool: the tokens that any of the flat ``positions`` sees."""
    mask = layout.attention_mask()[:, 0]
    rows, width = positions // mask.shape[-1], mask.shape[-1]
    counts = torch.zeros(mask.shape[:2], device=mask.device)
    return counts.index_add(0, rows, mask[rows, positions % width].float()) > 0


def _attention_window(config: PreTrainedConfig) -> int:
    """The length up to which every token sees all before it, by whatever name the configuration bounds that."""
    settings = config.to_dict().items()
    windows = [value for name, value in settings if name.endswith(_WINDOWS) and isinstance(value, int) and value > 0]
    return min(windows, default=UNBOUNDED)
