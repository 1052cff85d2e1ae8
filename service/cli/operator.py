"""Commands of operators: they work on the database itself, not over HTTP."""

import os
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from service.cli.connection import stack_state
from service.cli.failure import CommandError
from service.core.db import WrongLoginError, engine
from service.settings import MissingSettingError, required, settings

OperatorFolder = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="The folder of a stack that 'troll up' started. Without it: DATABASE_URL and TROLL_KEY_PEPPER if given.",
    ),
]


def use_database(data_dir: Path | None) -> None:
    """Point the settings of this process at a stack's database, unless the environment already names one."""
    given = os.environ.get("DATABASE_URL") or os.environ.get("TROLL_SECRETS_DIR")
    if data_dir is not None or not given:
        from service.embedded.folder import Folder

        state = stack_state(data_dir)
        os.environ["DATABASE_URL"] = state["database_url"]
        os.environ["TROLL_DATA_DIR"], os.environ["TROLL_MODELS_DIR"] = state["data_dir"], state["models_dir"]
        os.environ["TROLL_KEY_PEPPER"] = Folder(Path(state["data_dir"])).pepper()
        settings.cache_clear()
    try:
        engine("troll_operator")
        required("key_pepper")
    except ValidationError as error:
        missing = ", ".join(str(problem["loc"][0]).upper() for problem in error.errors())
        raise CommandError(f"A database is given, but these settings are missing or invalid: {missing}.") from error
    except (WrongLoginError, MissingSettingError) as error:
        raise CommandError(str(error)) from error
