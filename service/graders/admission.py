"""Which graders this installation allows: whether code may run, which judges and which scoring services may be asked.

``check_allowed`` is asked when a job or a grader is submitted, with the path of the grader in the request, and again
when a grader is built to run, because an operator may have changed the settings in between.
"""

from service.graders.definitions import CodeTests, Grader, Http, LabelModel, Multi, Python, ScoreModel
from service.graders.schemas import GraderError
from service.graders.settings import GraderSettings, ModelEndpoint, ScoringService, origin_of


def check_allowed(grader: Grader, settings: GraderSettings, path: str, organization_id: str | None = None) -> None:
    """Raise ``GraderError``, naming the field, for a grader that ``settings`` do not allow.

    ``organization_id`` is the caller's; None leaves open whom a scoring service belongs to, as
    was settled at submission.
    """
    match grader:
        case Multi():
            errors = []
            for key, each in grader.graders.items():
                try:
                    check_allowed(each, settings, f"{path}.graders.{key}", organization_id)
                except GraderError as error:
                    errors.append(error)
            if errors:
                raise GraderError.of(errors)
        case Python() | CodeTests() if settings.jail == "off":
            raise GraderError(
                f"Graders of type '{grader.type}' run code and are turned off on this server; its operator can turn "
                "them on by choosing a jail.",
                f"{path}.type",
            )
        case ScoreModel() | LabelModel() if endpoint_of(grader.model, settings) is None:
            offered = [model for endpoint in settings.model_endpoints for model in endpoint.models]
            known = f"Models offered: {', '.join(offered)}." if offered else "This server offers none."
            raise GraderError(f"The model '{grader.model[:80]}' is not offered as a grader. {known}", f"{path}.model")
        case Http() if service_of(grader.url, settings, organization_id) is None:
            raise GraderError(
                f"'{origin_of(grader.url)}' is not a scoring service that this server may call; its operator keeps the "
                "list.",
                f"{path}.url",
            )


def endpoint_of(model: str, settings: GraderSettings) -> ModelEndpoint | None:
    """The endpoint that serves ``model``."""
    return next((each for each in settings.model_endpoints if model in each.models), None)


def service_of(url: str, settings: GraderSettings, organization_id: str | None = None) -> ScoringService | None:
    """The scoring service that ``url`` belongs to: same scheme, host and port."""
    origin = origin_of(url)
    return next(
        (
            each
            for each in settings.scoring_services
            if each.origin == origin and organization_id in (None, each.organization_id or organization_id)
        ),
        None,
    )
