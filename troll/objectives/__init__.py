"""The objectives, by name: one module each, and a line here."""

from typing import Any

from troll.objectives.base import Objective
from troll.objectives.clip import Clip
from troll.objectives.dppo import Dppo
from troll.objectives.troll import Troll

OBJECTIVES: dict[str, type[Objective[Any]]] = {"troll": Troll, "clip": Clip, "dppo": Dppo}

__all__ = ["OBJECTIVES", "Clip", "Dppo", "Objective", "Troll"]
