"""The precision a model computes in, the same for sampling and for training so that their log-probabilities agree."""

import torch


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 matrix products on a GPU; on a CPU everything stays float32. The parameters are float32 on both."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
