"""Which graders this installation allows: whether code may run, which judges and which scoring services may be asked.

``check_allowed`` is asked when a job or a grader is submitted, with the path of the grader in the request, and again
when a grader is built to run, because an operator may have changed the settings in between.
"""

from service.graders.definition import Fault
from service.graders.schemas import Grader, GraderError
from service.graders.settings import GraderSettings


def check_allowed(grader: Grader, settings: GraderSettings, path: str, organization_id: str | None = None) -> None:
    """Raise ``GraderError``, naming the field, for a grader that ``settings`` do not allow.

    ``organization_id`` is the caller's; None leaves open whom a scoring service belongs to, as
    was settled at submission.
    """
    errors = []
    for key, part in grader.parts.items():
        try:
            check_allowed(part, settings, f"{path}.graders.{key}", organization_id)
        except GraderError as error:
            errors.append(error)
    if errors:
        raise GraderError.of(errors)
    fault = _refusal(grader, settings, organization_id)
    if fault is not None:
        raise GraderError(fault.message, f"{path}.{fault.field}")


def _refusal(grader: Grader, settings: GraderSettings, organization_id: str | None) -> Fault | None:
    if grader.runs_code and settings.jail == "off":
        return Fault(
            "type",
            f"Graders of type '{grader.type}' run code and are turned off on this server; its operator can turn "
            "them on by choosing a jail.",
        )
    return grader.refused(settings, organization_id)
