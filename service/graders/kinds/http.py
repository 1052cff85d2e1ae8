"""``http``: a team's own scoring service."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from service.graders.bounds import ANY, Interval
from service.graders.definition import Fault, GraderDefinition, GraderName
from service.graders.settings import GraderSettings, origin_of


def _check_url(url: str) -> str:
    try:
        origin_of(url)
    except ValueError as error:
        raise ValueError(f"'{url[:200]}' cannot be called: {error}") from None
    if "#" in url:
        raise ValueError("it must not have a fragment (#)")
    return url


class Http(GraderDefinition):
    """The rewards that the scoring service at ``url`` answers with, a batch of samples at a time.

    ``endpoint`` is Azure's name for it.
    """

    aliases = ("endpoint",)
    asks_others = True

    type: Literal["http"]
    name: GraderName = "http"
    url: Annotated[str, Field(max_length=2000), AfterValidator(_check_url)]

    def bounds(self) -> Interval:
        return ANY

    def refused(self, settings: GraderSettings, organization_id: str | None) -> Fault | None:
        if settings.service_of(self.url, organization_id) is not None:
            return None
        origin = origin_of(self.url)
        why = "is not a scoring service that this server may call; its operator keeps the list."
        return Fault("url", f"'{origin}' {why}")
