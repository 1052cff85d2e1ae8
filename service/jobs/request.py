"""From a request body to the parts of a job's specification: each error names the field it is about."""

from typing import Any

from pydantic import ValidationError

from service.core.errors import DomainError, invalid
from service.core.http import describe
from service.graders.configured import admit
from service.graders.schemas import Grader
from service.jobs.integrations import Integration
from service.jobs.spec import Hyperparameters

METHOD = "method.reinforcement"


def parse_method(
    method: dict[str, Any] | None, legacy_hyperparameters: dict[str, Any] | None, organization_id: str
) -> tuple[Grader, Hyperparameters]:
    """The grader and the hyperparameters of a create request. Raises a 400 whose ``param`` is the offending field."""
    kind = (method or {}).get("type")
    if kind != "reinforcement":
        asked = "A job without 'method' is a supervised one" if kind is None else f"'{kind}' jobs are not served"
        raise invalid(f"{asked}; this service takes method.type 'reinforcement'.", "method.type")
    assert method is not None
    body = method.get("reinforcement")
    if not isinstance(body, dict):
        raise invalid(f"Missing required parameter: '{METHOD}'.", METHOD)
    unknown = sorted(body.keys() - {"grader", "hyperparameters", "response_format"})
    if unknown:
        raise invalid(f"Unknown parameter: '{METHOD}.{unknown[0]}'.", f"{METHOD}.{unknown[0]}", "unknown_parameter")
    if body.get("response_format") is not None:
        raise invalid("Structured output is not supported; leave it out.", f"{METHOD}.response_format")
    if body.get("grader") is None:
        raise invalid(f"Missing required parameter: '{METHOD}.grader'.", f"{METHOD}.grader")
    grader = admit(body["grader"], f"{METHOD}.grader", organization_id)
    return grader, _hyperparameters(body.get("hyperparameters"), legacy_hyperparameters)


def check_integrations(integrations: list[Integration], wandb_mode: str) -> None:
    """Raises a 400 when this installation does not serve them."""
    if integrations and wandb_mode == "off":
        raise invalid(
            "Weights & Biases is turned off on this server. Leave 'integrations' out, or ask the operator to set "
            "TROLL_WANDB_MODE and TROLL_WANDB_API_KEY.",
            "integrations",
        )


def _hyperparameters(raw: Any, legacy: dict[str, Any] | None) -> Hyperparameters:
    prefix = f"{METHOD}.hyperparameters"
    if raw is not None and not isinstance(raw, dict):
        raise invalid(f"Invalid value for '{prefix}': it must be an object.", prefix)
    given = {name: value for name, value in {**(legacy or {}), **(raw or {})}.items() if value is not None}
    try:
        return Hyperparameters.model_validate(given)
    except ValidationError as error:
        raise _hyperparameter_error(error, prefix) from error


def _hyperparameter_error(error: ValidationError, prefix: str) -> DomainError:
    problems = error.errors(include_url=False)
    name = problems[0]["loc"][0]
    if problems[0]["type"] == "extra_forbidden":
        known = ", ".join(Hyperparameters.model_fields)
        message = f"Unknown hyperparameter: '{prefix}.{name}'. Known ones: {known}."
        return invalid(message, f"{prefix}.{name}", "unknown_parameter")
    # A field that may also be "auto" reports one problem for each alternative.
    about_it = [problem for problem in problems if problem["loc"][0] == name]
    reasons = list(dict.fromkeys(problem["msg"].removeprefix("Input should be ") for problem in about_it))
    first = {**problems[0], "loc": [name], "msg": "it should be " + " or ".join(reasons)}
    return invalid(describe([first], prefix)[0], f"{prefix}.{name}")
