"""``python -m workers.confined``: whether the jail that ``TROLL_GRADERS`` chooses holds on this machine.

Exits with 0 when it does. When it does not, the last line that it says is why.
"""

import os
import sys
import threading

from service.graders.configured import grader_settings
from workers.graders import JailError
from workers.graders.confinement import ensure_confined

SECONDS = 90.0


def main() -> None:
    timer = threading.Timer(SECONDS, _give_up)
    timer.daemon = True
    timer.start()
    try:
        ensure_confined(grader_settings())
    except (JailError, OSError) as error:
        sys.exit(" ".join(str(error).split()))


def _give_up() -> None:
    print(f"its self-test took longer than {SECONDS:g} s", file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    main()
