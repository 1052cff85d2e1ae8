"""The processes of one job, called ranks: how many there are, and which of them this is."""

import os

RENDEZVOUS = "TROLL_RENDEZVOUS"
"""Where the ranks find each other; torchrun's variables say it when this one does not."""


def number() -> int:
    """How many ranks the job has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own() -> int:
    """Which of them this is."""
    return int(os.environ.get("RANK", "0"))
