"""``python -m service.embedded OPTIONS``: a stack in the background, as ``troll up --detach`` starts it.

Says one line of JSON on stdout, ``{"ready": …}`` or ``{"error": …}``, and then no more; logs go to stderr.
"""

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.embedded.jail import Jail
from service.embedded.processes import StartError, StoppedError
from service.embedded.stack import Options, Stack


def main(options: dict[str, Any]) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    typed = {"data_dir": Path(options["data_dir"]), "jail": Jail(options["jail"])}
    stack = Stack(Options(**{**options, **typed}))
    stack.stop_on_signals()
    try:
        stack.run(lambda ready: _say({"ready": asdict(ready)}))
    except (StartError, OSError) as error:
        logging.error("%s", error)
        _say({"error": str(error)})
        return 1
    except StoppedError:
        return 130
    return 0


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)
    # Whoever started us stops listening now, and writing to a pipe that nobody reads would end us.
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
