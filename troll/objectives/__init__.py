"""The objectives, by name: one module each, and a line here."""

from typing import Any

from troll.objectives.base import Objective
from troll.objectives.cispo import Cispo
from troll.objectives.clip import Clip
from troll.objectives.dppo import Dppo
from troll.objectives.gspo import Gspo
from troll.objectives.sapo import Sapo
from troll.objectives.troll import Troll

OBJECTIVES: dict[str, type[Objective[Any]]] = {
    "troll": Troll,
    "clip": Clip,
    "dppo": Dppo,
    "gspo": Gspo,
    "cispo": Cispo,
    "sapo": Sapo,
}

__all__ = ["OBJECTIVES", "Cispo", "Clip", "Dppo", "Gspo", "Objective", "Sapo", "Troll"]
