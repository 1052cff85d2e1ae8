"""The precision a model computes in, the same for sampling and for training so that their log-probabilities agree."""

from typing import Literal

import torch


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 matrix products on a GPU; on a CPU everything stays float32. The parameters are float32 on both."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def dtype_on(device: torch.device) -> Literal["float32", "bfloat16"]:
    """What ``autocast`` computes in on ``device``, for an engine that is told."""
    return "bfloat16" if device.type == "cuda" else "float32"
