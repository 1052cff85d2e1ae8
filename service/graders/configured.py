"""The operator's grader settings, read from the environment once, and what they admit.

``TROLL_GRADERS`` holds them as JSON.
"""

from functools import cache
from typing import Any

from pydantic_settings import BaseSettings, SettingsConfigDict

from service.core.errors import invalid
from service.graders.admission import check_allowed
from service.graders.schemas import Grader, GraderError, parse_grader
from service.graders.settings import GraderSettings


class _Environment(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TROLL_", frozen=True)

    graders: GraderSettings = GraderSettings()


@cache
def grader_settings() -> GraderSettings:
    """Raises ``pydantic.ValidationError`` naming what cannot be read."""
    return _Environment().graders


def admit(raw: Any, path: str, organization_id: str) -> Grader:
    """The grader that ``raw``, found at ``path`` of a request, describes.

    Raises a 400 that names the offending field, also for a grader that this installation does not allow.
    """
    try:
        grader = parse_grader(raw, path)
        check_allowed(grader, grader_settings(), path, organization_id)
    except GraderError as error:
        raise invalid(error.message, error.param, "invalid_grader") from error
    return grader
