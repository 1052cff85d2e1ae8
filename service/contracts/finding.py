"""What ``troll doctor`` found, here or in a process with a worker's libraries."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Finding(BaseModel):
    """One thing that was looked at. ``remedy`` says what to do where it does not hold."""

    model_config = ConfigDict(frozen=True)

    what: str
    state: Literal["holds", "warning", "fails"]
    found: str
    remedy: str = ""
