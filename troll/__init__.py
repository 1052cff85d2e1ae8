"""TROLL: a trust region on every token's distribution, as a policy-gradient objective in plain PyTorch.

`sparsify` keeps the old policy's rows, `troll_loss` is the objective on the current policy's logits, and the `fused_`
functions are the same from hidden states, without ever holding the logits. `project` is the projection alone.
Advantages are in `troll.advantages`; `clip_loss` and `dppo_loss` are what the objective is compared against, and
`cross_entropy` is what comes before it: supervised fine-tuning.
"""

from troll.baselines import clip_loss, dppo_loss, fused_clip_loss, fused_dppo_loss
from troll.batch import LossOutput
from troll.cross_entropy import cross_entropy, fused_cross_entropy
from troll.fused import fused_sparsify
from troll.objective import fused_troll_loss, troll_loss
from troll.projection import Projection, project
from troll.reference import Reference
from troll.rows import SparseLogProbs
from troll.sparse import from_top_log_probs, sparsify

__all__ = [
    "LossOutput",
    "Projection",
    "Reference",
    "SparseLogProbs",
    "clip_loss",
    "cross_entropy",
    "dppo_loss",
    "from_top_log_probs",
    "fused_clip_loss",
    "fused_cross_entropy",
    "fused_dppo_loss",
    "fused_sparsify",
    "fused_troll_loss",
    "project",
    "sparsify",
    "troll_loss",
]
