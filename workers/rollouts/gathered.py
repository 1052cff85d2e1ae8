"""A model that is spread over several processes, for as long as each of them samples from it at its own pace."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Have all parameters of a sharded model here until the end; nothing for one that is not sharded.

    All processes have to enter, and wait for each other there; inside they need not keep step.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            # The outermost part keeps its parameters from a forward to the backward, for the output layer's sake.
            part.set_reshard_after_forward(part is not model, recurse=False)
