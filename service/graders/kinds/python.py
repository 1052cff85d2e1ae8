"""``python``: a function that the user wrote."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from service.graders import source
from service.graders.bounds import ANY, Interval
from service.graders.definition import Fault, GraderDefinition, GraderName

MAX_SOURCE_BYTES = 256 * 1000


def _check_source(source: str) -> str:
    size = len(source.encode(errors="surrogatepass"))
    if size >= MAX_SOURCE_BYTES:
        raise ValueError(f"the source has {size} bytes; it must have fewer than {MAX_SOURCE_BYTES}")
    return source


class Python(GraderDefinition):
    """What the function ``grade(sample, item)`` of ``source`` returns, a finite number. It runs in a jail.

    ``image_tag`` chose among images of the hosted API; there is one environment here, and the tag is only kept.
    """

    runs_code = loads_code = True

    type: Literal["python"]
    name: GraderName = "python"
    source: Annotated[str, AfterValidator(_check_source)]
    image_tag: Annotated[str, Field(max_length=64)] | None = None

    def fault(self) -> Fault | None:
        """Whether the source can be read."""
        reason = source.fault(self.source)
        return None if reason is None else Fault("source", f"Invalid 'source': {reason}.")

    def bounds(self) -> Interval:
        return ANY
