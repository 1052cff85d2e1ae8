"""Whether a model reads answers that share rows with others as it reads them alone: found out by doing both.

A model that keeps a recurrent state, or makes masks or positions of its own, cannot; whatever its name, it shows here.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from workers.rollouts.engine import Rollout
from workers.training.batch import MicroBatch, Trained
from workers.training.packing import SHORT, micro_batches

UNBOUNDED = 1 << 20
# Prompts and answers: two that share a prompt, and two that share a row. Apart and together they come in one order.
_PROBE = [
    ([1, 2, 3], [4, 5, 6, 7]),
    ([1, 2, 3], [3, 1, 9, 2]),
    ([2, 1], [5, 0, 11]),
    ([3, 0], [1, 7, 10]),
]
_WINDOWS = ("window", "window_size", "chunk_size", "local_attention")


@torch.no_grad()
def longest_shared(config: PreTrainedConfig, read: Callable[[MicroBatch], Tensor], device: torch.device) -> int:
    """The longest sample that may share a row, 0 for none; ``read`` gives the states ``[N, ...]`` of a micro-batch."""
    text = config.get_text_config()
    samples = [
        Trained(prompt, Rollout([token % text.vocab_size for token in answer], [0.0] * len(answer), "stop"), 0.0)
        for prompt, answer in _PROBE
    ]
    try:
        apart, shared = (
            torch.cat([read(part) for part in micro_batches(samples, SHORT, device, longest_shared=limit)])
            for limit in (0, SHORT)
        )
    except Exception:
        # Whatever a model has against masks and positions of ours, it is read without them.
        return 0
    # Far above what rounding does, far below what a token does that should not be seen.
    tolerance = torch.finfo(apart.dtype).eps ** 0.5
    if not bool((apart - shared).abs().max() <= tolerance * apart.abs().max()):
        return 0
    return _attention_window(text)


def _attention_window(config: PreTrainedConfig) -> int:
    """The length up to which every token sees all before it, by whatever name the configuration bounds that."""
    settings = config.to_dict().items()
    windows = [value for name, value in settings if name.endswith(_WINDOWS) and isinstance(value, int) and value > 0]
    return min(windows, default=UNBOUNDED)
