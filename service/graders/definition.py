"""What every kind of grader says of itself: the base of the classes in ``service.graders.kinds``.

A kind that is as the defaults here say need not repeat them. ``type`` and ``name`` are fields of every kind; each
declares them itself, so that its fields are listed in the order in which they are documented.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.graders.bounds import Interval
from service.graders.settings import GraderSettings
from service.graders.template import Template

MAX_REWARD = 1e6
"""Rewards are from ``-MAX_REWARD`` to this; a grader that gives another has failed."""
OUTPUT_TEXT = "{{sample.output_text}}"


def _check_template(text: str) -> str:
    Template.parse(text)
    return text


TemplateText = Annotated[str, AfterValidator(_check_template)]
GraderName = Annotated[str, Field(min_length=1, max_length=64)]


class Fault(NamedTuple):
    """What is wrong with one field, in a sentence."""

    field: str
    message: str


class Frozen(BaseModel):
    """A part of a definition: unknown fields are refused, and so are numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GraderDefinition(Frozen, ABC):
    """A grader as it travels on the wire and stands in a stored specification."""

    aliases: ClassVar[tuple[str, ...]] = ()
    """Other names of its ``type``, which are taken for it and not kept."""
    runs_code: ClassVar[bool] = False
    """Whether it runs code of users or models, for which the operator must have chosen a jail."""
    loads_code: ClassVar[bool] = False
    """Whether it has code of its own, which is loaded in the jail when the grader is checked."""
    asks_others: ClassVar[bool] = False
    """Whether grading sends something to another server."""

    @property
    def parts(self) -> Mapping[str, Any]:
        """The graders that it is made of, by key: only ``multi`` has any."""
        return {}

    @property
    def judge(self) -> str | None:
        """The model that it asks, whose tokens are counted."""
        return None

    def templates(self) -> list[str]:
        """The templates that it fills for a sample."""
        return []

    @abstractmethod
    def bounds(self) -> Interval:
        """What its rewards lie in, as far as the definition tells."""

    def least_reward(self, given: float | None = None) -> float:
        """What an answer earns that cannot be graded through its own fault: never more than a wrong one.

        Where the definition tells no least reward it is the least of 0, of the greatest that the grader can give, and
        of ``given``, the least that it gave so far.
        """
        found = self.bounds()
        if math.isfinite(found.low):
            return found.low
        return min(0.0, found.high, math.inf if given is None else given)

    @classmethod
    def unsupported(cls, fields: dict[str, Any]) -> Fault | None:
        """What the hosted API would take of ``fields``, as they were sent, and this one cannot do."""
        return None

    def fault(self) -> Fault | None:
        """What is asked once, of a grader that was sent, and not of a stored one: it takes long."""
        return None

    def refused(self, settings: GraderSettings, organization_id: str | None) -> Fault | None:
        """Why ``settings`` do not let it ask whom it would ask.

        ``organization_id`` is the caller's; None leaves open whom a service belongs to, as was settled at submission.
        """
        return None
