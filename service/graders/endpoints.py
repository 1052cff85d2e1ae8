"""``/v1/fine_tuning/alpha/graders``"""

from fastapi import APIRouter

from service.accounts.caller import Known, Route
from service.accounts.scopes import needs
from service.graders import trial
from service.graders.trial import RanGrader, RunGrader, ValidatedGrader, ValidateGrader

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["graders"], route_class=Route)


@router.post("/validate")
@needs("submit")
async def validate(known: Known, body: ValidateGrader) -> ValidatedGrader:
    """Check a grader without grading: code is loaded, with what it imports.

    The answer holds the grader as a job would keep it.
    """
    return await trial.validate(body, known.organization_id)


@router.post("/run")
@needs("submit")
async def run(known: Known, body: RunGrader) -> RanGrader:
    """Grade one answer. A grader that fails is told by the flags of ``metadata.errors``, with the status 200."""
    return await trial.run(body, known.organization_id)
