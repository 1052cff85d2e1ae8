"""A model whose parameters, gradients and optimizer state are spread over the ranks of a job (FSDP2).

Each of the model's blocks is gathered when it is used and resharded afterwards; what stands outside the blocks
(embeddings, the last norm, the output layer, which may be the embeddings again) is one group that stays from a forward
to the end of its backward. Gradients are summed over the ranks: each rank's loss is divided by the normalizer of all.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from workers.modeling import distributed
from workers.modeling.policy import Policy


def shard(policy: Policy) -> None:
    """Spread ``policy``, which every rank has loaded, over the ranks' devices."""
    model, device = policy.model, policy.device
    mesh = init_device_mesh(device.type, (distributed.size(),))
    blocks = set(model._no_split_modules or ())
    for module in [module for module in model.modules() if type(module).__name__ in blocks]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Gloo cannot multiply while it sums, and there is nothing to multiply by.
            module.set_force_sum_reduction_for_comms(True)
    model.to(device)
    if policy.lm_head is not None:
        policy.backbone = _as_forward_of(model, policy.backbone)


def _as_forward_of(model: PreTrainedModel, backbone: Any) -> Any:
    """``backbone`` as a forward of ``model``: a call gathers the output layer too and prepares for the backward."""
    # Not ``backbone``: some models have a module of that name.
    model.backbone_forward = backbone
    register_fsdp_forward_method(model, "backbone_forward")
    return model.backbone_forward


def reshard(model: PreTrainedModel) -> None:
    """Keep only this rank's shard of every parameter; a forward without a backward leaves gathered ones behind."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full(tensor: Tensor) -> Tensor:
    """``tensor``, put together from all ranks if it is spread over them; all of them have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors in ``full``, one at a time. All ranks have to take all of them."""
    for name, tensor in tensors:
        yield name, full(tensor)
