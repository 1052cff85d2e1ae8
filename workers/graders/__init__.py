"""Graders at work: ``build`` makes one of its definition, ``grade`` gives each sample a reward or a reason."""

from service.graders import schemas
from service.graders.admission import check_allowed
from service.graders.errors import GradeError
from service.graders.settings import GraderSettings
from workers.graders import registry
from workers.graders.grading import Grade, Grader, GraderSample, TokenUsage
from workers.graders.jail import JailError

__all__ = ["Grade", "GradeError", "Grader", "GraderSample", "JailError", "TokenUsage", "batch_size", "build", "faults"]


def build(definition: schemas.Grader, settings: GraderSettings | None = None) -> Grader:
    """The grader that ``definition`` defines, its templates and formula parsed once.

    Without ``settings`` nothing is allowed that runs code or asks another server. Raises ``schemas.GraderError`` for
    what they do not allow, ``JailError`` where code is allowed and no jail holds, and ``OSError`` when the file of a
    key or a secret cannot be read.
    """
    settings = settings or GraderSettings()
    check_allowed(definition, settings, "grader")
    return registry.make(definition, settings)


def faults(definition: schemas.Grader, settings: GraderSettings, path: str = "grader") -> dict[str, str]:
    """What keeps graders' sources from being loaded in the jail, such as what they import, by field.

    Raises ``JailError`` where no jail holds.
    """
    found: dict[str, str] = {}
    for key, part in definition.parts.items():
        found |= faults(part, settings, f"{path}.graders.{key}")
    if definition.loads_code:
        fault = registry.SINGLE_GRADERS[definition.type].fault(definition, settings)
        if fault is not None:
            found[f"{path}.{fault.field}"] = fault.message
    return found


def batch_size(definition: schemas.Grader) -> int:
    """How many samples a batch should have, if they can be had, for what a batch costs by itself to be small."""
    singles = definition.parts.values() or [definition]
    return max(registry.SINGLE_GRADERS[each.type].batch_size for each in singles)
