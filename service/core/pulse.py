"""A sign of life in a file, by which a container's health is checked without starting a Python for it."""

import contextlib

from service.settings import settings


def give() -> None:
    """Touch ``TROLL_PULSE_FILE``, if it is set."""
    file = settings().pulse_file
    if file is not None:
        # Whoever looks at the file sees that it is old or missing.
        with contextlib.suppress(OSError):
            file.touch()
