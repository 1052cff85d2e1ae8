"""A critic: the job's base model, with a scalar head in the place of its output layer.

Like the policy it is a model of transformers that is trained in float32, or whose adapters are, and it is spread over
ranks like one. The head has no adapter and is always trained.

N response tokens of a micro-batch, H hidden size.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from workers.modeling import model_folder, policy
from workers.modeling.lora import Lora
from workers.modeling.policy import Policy
from workers.modeling.precision import autocast
from workers.modeling.recomputation import When
from workers.modeling.rows import Readable


def load_critic(
    folder: Path, device: torch.device, adapters: Lora | None = None, *, recompute: When = "never"
) -> Policy:
    """A critic of the base model in ``folder``, whose values are 0 as long as it is not trained.

    Takes and raises what ``policy.load`` does; ``RunError`` also where the model's hidden states are not known.
    """
    loaded = policy.load(folder, device, adapters, recompute=recompute)
    if loaded.lm_head is None:
        reason = "has a model whose hidden states are not known here, which a critic needs: set advantage to another"
        raise model_folder.unusable(reason)
    # In float32, and without a draw from the generator that a resumed run goes on with.
    head = nn.utils.skip_init(nn.Linear, loaded.lm_head.in_features, 1, bias=False, device=loaded.model.device)
    nn.init.zeros_(head.weight)
    loaded.model.set_output_embeddings(head)
    loaded.lm_head = head
    return loaded


def values_of(critic: Policy, batch: Readable) -> Tensor:
    """What the critic expects to be earned from each response token on, ``[N]`` float32."""
    assert critic.lm_head is not None
    with autocast(critic.device):
        hidden = critic.hidden(batch)
    # Not in bfloat16, whose steps near 1 are 0.008.
    found: Tensor = critic.lm_head(hidden.float())
    return found.squeeze(-1)
