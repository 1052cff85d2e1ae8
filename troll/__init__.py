"""TROLL: a trust region on every token's distribution, as a policy-gradient objective in plain PyTorch.

`Troll(kl_bound=...)` is the objective: `.loss(...)` on the current policy's logits, `.fused_loss(...)` the same from
hidden states, without ever holding the logits. `sparsify` keeps the old policy's rows, and `project` is the projection
alone. `Clip`, `Dppo`, `Gspo`, `Cispo` and `Sapo` are what it is compared against, called alike; `OBJECTIVES` has all.
Advantages are in `troll.advantages`, and `cross_entropy` is what comes before it all: supervised fine-tuning.
"""

from troll.batch import LossOutput
from troll.cross_entropy import cross_entropy, fused_cross_entropy
from troll.fused import fused_sparsify
from troll.objectives import OBJECTIVES, Cispo, Clip, Dppo, Gspo, Objective, Sapo, Troll
from troll.projection import Projection, project
from troll.reference import Reference
from troll.rows import SparseLogProbs
from troll.sparse import from_top_log_probs, sparsify

__all__ = [
    "OBJECTIVES",
    "Cispo",
    "Clip",
    "Dppo",
    "Gspo",
    "LossOutput",
    "Objective",
    "Projection",
    "Reference",
    "Sapo",
    "SparseLogProbs",
    "Troll",
    "cross_entropy",
    "from_top_log_probs",
    "fused_cross_entropy",
    "fused_sparsify",
    "project",
    "sparsify",
]
