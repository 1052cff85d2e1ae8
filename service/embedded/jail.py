"""Whether a stack runs the code of graders: in a jail that has proven itself on this machine, or not at all."""

import json
import os
from dataclasses import dataclass, replace
from enum import StrEnum

from pydantic import TypeAdapter

from service.graders.configured import grader_settings
from service.graders.settings import GraderSettings, JailTier

DEFAULT: JailTier = "unshare"
_settings: TypeAdapter[GraderSettings] = TypeAdapter(GraderSettings)


class Jail(StrEnum):
    """What whoever starts the stack wants: a jail where it holds, a jail or no start, no jail."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True)
class Wanted:
    """Grader settings with the jail that is to be tried, or none. ``required``: no stack without it."""

    settings: GraderSettings
    required: bool = False
    why_off: str = ""


def wanted(choice: Jail) -> Wanted:
    """What ``choice`` makes of the operator's settings: a jail that ``TROLL_GRADERS`` names is one that has to hold.

    Raises ``ValueError`` where they cannot be read.
    """
    try:
        settings = grader_settings()
        named = "jail" in json.loads(os.environ.get("TROLL_GRADERS") or "{}")
    except ValueError as error:
        raise ValueError(f"TROLL_GRADERS cannot be read: {error}") from error
    if choice == Jail.OFF:
        return Wanted(replace(settings, jail="off"), why_off="--jail off")
    if choice == Jail.AUTO and named and settings.jail == "off":
        return Wanted(settings, why_off="TROLL_GRADERS turns the jail off")
    tier = settings.jail if settings.jail != "off" else DEFAULT
    return Wanted(replace(settings, jail=tier), required=named or choice == Jail.ON)


def variables(settings: GraderSettings) -> dict[str, str]:
    """The environment that says ``settings``."""
    return {"TROLL_GRADERS": _settings.dump_json(settings).decode()}


def note(tier: JailTier, why_off: str) -> str:
    """One line for whoever starts the stack."""
    if tier == "off":
        return f"Python graders and code tests are off: {why_off}. See docs/graders.md, 'The jail'."
    return f"Python graders and code tests run in a jail ({tier}), which holds on this machine; --jail off refuses it."
