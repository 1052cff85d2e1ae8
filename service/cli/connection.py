"""Which service a command talks to."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.failure import CommandError

if TYPE_CHECKING:
    from openai import OpenAI

DEFAULT_DATA_DIR = Path(".data/stack")

StackFolder = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Talk to the stack that 'troll up' started on this folder. Without it: OPENAI_BASE_URL with "
        "OPENAI_API_KEY if both are set, else the stack on TROLL_DATA_DIR or ./.data/stack.",
    ),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def connect(data_dir: Path | None) -> "OpenAI":
    """The official client, pointed at our service.

    An ``OPENAI_API_KEY`` without ``OPENAI_BASE_URL`` is taken for somebody else's and never sent anywhere.
    """
    from openai import OpenAI

    base_url, api_key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    if data_dir is None and base_url and api_key:
        return OpenAI(base_url=base_url, api_key=api_key)
    state = stack_state(data_dir)
    return OpenAI(base_url=state["base_url"], api_key=state["api_key"])


def stack_state(data_dir: Path | None) -> dict[str, str]:
    """What the running stack of a folder says of itself."""
    from service.embedded.folder import Folder

    folder = Folder(data_dir or default_data_dir())
    state = folder.read_state()
    if state is None:
        raise CommandError(
            f"No stack is up on {folder.root}. Start one with 'troll up', name its folder with --data-dir, "
            "or set OPENAI_BASE_URL and OPENAI_API_KEY."
        )
    return state


def default_data_dir() -> Path:
    return Path(os.environ.get("TROLL_DATA_DIR") or DEFAULT_DATA_DIR)
