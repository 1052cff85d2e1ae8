"""What a person sees when a command fails: a sentence on stderr and exit code 1; tracebacks are for bugs."""

import sys
from enum import IntEnum
from typing import Any

import typer
from typer.core import TyperGroup

from service.core.errors import DomainError


class ExitCode(IntEnum):
    """How commands end, for scripts. Typer ends one that was called wrongly."""

    DONE = 0
    FAILED = 1
    CALLED_WRONGLY = 2
    JOB_FAILED = 3
    JOB_CANCELLED = 4
    INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot do what it was asked. The message says why and what to do."""


class Commands(TyperGroup):
    """The top of the command tree; every failure passes through here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            message = explain(error)
            if message is None:
                raise
            typer.secho(f"Error: {message}", err=True, fg="red")
            raise typer.Exit(ExitCode.FAILED) from error


def explain(error: Exception) -> str | None:
    """A sentence about a foreseen failure; None for others, which are bugs and deserve their traceback."""
    if isinstance(error, CommandError | DomainError | OSError):
        return str(error)
    return _explain_api_error(error) if "openai" in sys.modules else None


def _explain_api_error(error: Exception) -> str | None:
    import openai

    if isinstance(error, openai.APIConnectionError):
        return f"Cannot reach {error.request.url}: {error.__cause__ or error}"
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        return f"{body.get('message') or error.message} (HTTP {error.status_code})"
    if isinstance(error, openai.APIError):
        # What a stream says when it cannot go on.
        return error.message
    return None
