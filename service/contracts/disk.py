"""Whether an error means that a disk, or what somebody may use of it, is full."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)
DATABASE_DISK_FULL = "53100"
"""PostgreSQL's code for a full disk of its own."""


def is_full(error: BaseException) -> bool:
    """Also where the system's error was wrapped in another, or, by libraries written in Rust, in its text alone."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        if getattr(seen, "sqlstate", None) == DATABASE_DISK_FULL:
            return True
        if any(f"(os error {number})" in str(seen) for number in FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
