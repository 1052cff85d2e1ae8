"""Which rows a step trains on.

The order is a permutation for each epoch that follows from the seed alone, so the position in the data is the step.
"""

import torch

from workers.modeling import seeds


def rows_of_step(step: int, seed: int, rows: int, batch_size: int, total: int | None = None) -> list[int]:
    """Which rows step ``step`` (from 1) trains on: a window on one shuffled epoch after another.

    ``total`` is how many rows all steps train on together; None is no end.
    """
    end = step * batch_size if total is None else min(step * batch_size, total)
    positions = range((step - 1) * batch_size, end)
    orders = {epoch: _permutation(seed, epoch, rows) for epoch in {position // rows for position in positions}}
    return [int(orders[position // rows][position % rows]) for position in positions]


def rows_in_all(rows: int, batch_size: int, n_steps: int, n_epochs: int) -> int:
    """How many rows ``n_steps`` train on: no more than the epochs have, so that the last step may be a smaller one."""
    asked = rows * n_epochs
    return asked if (n_steps - 1) * batch_size < asked < n_steps * batch_size else n_steps * batch_size


def _permutation(seed: int, epoch: int, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seeds.derive(seed, "order", epoch))
    return torch.randperm(rows, generator=generator)
