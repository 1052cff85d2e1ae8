"""Every method, one line each. What a method is, its class says."""

from functools import reduce
from operator import or_
from typing import Annotated, Any, get_args

from pydantic import AfterValidator

from service.jobs.methods.definition import MethodDefinition
from service.jobs.methods.evaluation import Evaluation
from service.jobs.methods.reinforcement import Reinforcement
from service.jobs.methods.supervised import Supervised

# In the order in which errors list them.
Method = (
    Supervised
    | Reinforcement
    | Evaluation
)  # fmt: skip


def type_of(kind: type[MethodDefinition]) -> str:
    """The ``type`` on the wire of a method."""
    (name,) = get_args(kind.model_fields["type"].annotation)
    return str(name)


METHODS: dict[str, type[Method]] = {type_of(kind): kind for kind in get_args(Method)}
"""By ``type``."""

EventData = reduce(or_, [kind.metrics for kind in METHODS.values()]) | dict[str, Any] | None
"""What an event has besides its message; of one of the type ``metrics``, the numbers of a step."""


def _known(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"the method is none of {', '.join(METHODS)}")
    return name


MethodName = Annotated[str, AfterValidator(_known)]
