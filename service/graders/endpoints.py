"""``/v1/fine_tuning/alpha/graders``"""

from fastapi import APIRouter

from service.accounts.caller import Known, Route
from service.graders import trial
from service.graders.trial import RanGrader, RunGrader, ValidatedGrader, ValidateGrader

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["graders"], route_class=Route)


@router.post("/validate")
async def validate(known: Known, body: ValidateGrader) -> ValidatedGrader:
    """Check a grader without running it. The answer holds it as a job would keep it."""
    grader = await trial.admitted(body.grader, known.organization_id)
    return ValidatedGrader(grader=grader.model_dump(mode="json"))


@router.post("/run")
async def run(known: Known, body: RunGrader) -> RanGrader:
    """Grade one answer. A grader that fails is told by the flags of ``metadata.errors``, with the status 200."""
    return await trial.run(body, known.organization_id)
