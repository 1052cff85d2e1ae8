"""Seeds derived from the job's seed and what they are for, so that a resumed run draws what the first would have."""

import hashlib


def derive(seed: int, purpose: str, number: int) -> int:
    """A 63-bit seed; different purposes and numbers (a step, an epoch) give unrelated ones."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
