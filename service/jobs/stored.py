"""What jobs keep in the database as JSON, in the shape of one version: its only reader and its only writer.

A specification and the question of its examination hold the number of their version under ``version``; those without
one are of version 1. A version that is older than ``VERSION`` is brought to it in Python, one upgrade after the
other, whenever it is read: rows are never rewritten. What cannot be read is
``UnreadableError``, for whoever reads it to show as such and otherwise leave alone.

To change the shape, see "Stored specifications" in ``docs/operations.md``.
"""

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from service.contracts.wording import reason_of
from service.jobs.examination import Question
from service.jobs.spec import JobSpec

VERSION = 6
"""Of what this version of the service writes, and the newest that it reads."""
NUMBER = "version"

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""Brings a row's content from one version to the next."""


EARLY: dict[str, dict[str, Any]] = {
    "supervised": {"gradient_checkpointing": "gpu", "chat_template_kwargs": {}},
    "reinforcement": {
        "lora_rank": 0,
        "gradient_checkpointing": "gpu",
        "chat_template_kwargs": {},
        "max_staleness": 0,
    },
}
"""What jobs of version 1 have been run with that were stored before there was such a hyperparameter."""
LATER: dict[int, dict[str, dict[str, Any]]] = {
    1: {"reinforcement": {"dppo_divergence": "tv", "dppo_threshold": 0.2}},
    2: {
        "reinforcement": {
            "ratio": "token",
            "support": "union",
            "tail": "constant",
            "dual_clip": 10.0,
            "sapo_temperature_pos": 1.0,
            "sapo_temperature_neg": 1.05,
            "entropy_coefficient": 0.0,
            "epochs": 1,
            "schedule": "constant",
            "mask_truncated": False,
            "overlong_buffer": 0,
            "overlong_penalty": 1.0,
        },
    },
    3: {
        # Without a reference, a critic, or an end before the last step.
        "reinforcement": {
            "kl_coefficient": 0.0,
            "kl_in": "loss",
            "kl_estimator": "k3",
            "gae_gamma": 1.0,
            "gae_lambda": 1.0,
            "critic_learning_rate": 1e-5,
            "critic_warmup_steps": 0,
            "value_clip": 0.5,
            "filter_groups": False,
            "max_refills": 3,
            "target_reward": None,
            "early_stopping_patience": 0,
            "early_stopping_threshold": 0.0,
        },
    },
    # Whose answers were one step old at most and had no pieces.
    4: {"reinforcement": {"partial_rollouts": True, "pessimistic": False}},
    5: {"reinforcement": {"torch_compile": "never"}, "supervised": {"torch_compile": "never"}},
}
"""By version and method: hyperparameters that came after it, and what jobs of that version have been run with."""


def _method(content: dict[str, Any]) -> dict[str, Any] | None:
    """The method, where it and its hyperparameters are objects. Anything else is told as such when it is read."""
    method = content.get("method")
    return method if isinstance(method, dict) and isinstance(method.get("hyperparameters"), dict) else None


def _with_early(content: dict[str, Any]) -> dict[str, Any]:
    """For version 2, in which every hyperparameter is stored."""
    if (method := _method(content)) is not None:
        method["hyperparameters"] = EARLY.get(str(method.get("type")), {}) | method["hyperparameters"]
    return content


def _with_sets(content: dict[str, Any]) -> dict[str, Any]:
    """For version 4, in which reinforcement has validation sets."""
    if (method := _method(content)) is not None and method.get("type") == "reinforcement":
        method["validation_sets"] = []
    return content


RESHAPED: dict[int, Upgrade] = {1: _with_early, 3: _with_sets}
"""What else is another way in the version after this one."""


def _after(version: int) -> Upgrade:
    def upgrade(content: dict[str, Any]) -> dict[str, Any]:
        content = RESHAPED.get(version, _unchanged)(content)
        if (method := _method(content)) is not None:
            method["hyperparameters"] |= LATER.get(version, {}).get(str(method.get("type")), {})
        return content

    return upgrade


def _unchanged(content: dict[str, Any]) -> dict[str, Any]:
    return content


SPECIFICATIONS: dict[int, Upgrade] = {version: _after(version) for version in sorted({*LATER, *RESHAPED})}
"""By the version that they start from; a version without one has the shape of the next."""
QUESTIONS: dict[int, Upgrade] = {}

ERROR_CODES = {"weights_parted": "weights_out_of_sync"}
"""Codes of errors as earlier versions stored them in jobs and events, and what they are called now."""

FAULTS_TOLD = 3

log = logging.getLogger(__name__)


class UnreadableError(Exception):
    """Something stored that this version cannot read. Its text says why, in a sentence, and none of the content."""


def read_specification(stored: Any) -> JobSpec:
    """Raises ``UnreadableError``."""
    return _read(JobSpec, stored, SPECIFICATIONS)


def read_question(stored: Any) -> Question:
    """Raises ``UnreadableError``."""
    return _read(Question, stored, QUESTIONS)


def with_current_code(stored: Any) -> Any:
    """A job's stored error or an event's data, its ``code`` under the name that it has now; anything else as it is."""
    code = stored.get("code") if isinstance(stored, dict) else None
    current = ERROR_CODES.get(code) if isinstance(code, str) else None
    return stored if current is None else {**stored, "code": current}


def write(content: JobSpec | Question) -> dict[str, Any]:
    plain = content.model_dump(mode="json")
    return {NUMBER: VERSION, **plain}


class Aside:
    """Ids of rows that this process has found it cannot read and asks for no more. Nothing is changed about them."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._ids: set[str] = set()

    @property
    def ids(self) -> list[str]:
        return list(self._ids)

    def put(self, id: str, error: UnreadableError) -> None:
        if id not in self._ids:
            self._ids.add(id)
            log.error("%s %s is put aside until this process ends: %s", self._kind, id, error)


Model = TypeVar("Model", bound=BaseModel)


def _read(model: type[Model], stored: Any, upgrades: Mapping[int, Upgrade]) -> Model:
    if not isinstance(stored, dict):
        raise UnreadableError("It is no JSON object.")
    version = stored.get(NUMBER, 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UnreadableError("Its version is not a number from 1 on.")
    if version > VERSION:
        raise UnreadableError(f"It is of version {version}, and this server reads versions up to {VERSION}.")
    content = {name: value for name, value in stored.items() if name != NUMBER}
    try:
        for older in range(version, VERSION):
            # A row's content is the session's: an upgrade may change what it is given.
            content = upgrades.get(older, _unchanged)(copy.deepcopy(content))
        return model.model_validate(content)
    except ValidationError as error:
        raise UnreadableError(_told(error)) from error
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        message = f"It could not be brought from version {version} to {VERSION} ({type(error).__name__}: {error})."
        raise UnreadableError(message) from error


def _told(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    told = [f"{'.'.join(map(str, each['loc']))}: {_reason(each)}" for each in problems[:FAULTS_TOLD]]
    more = f"; and {len(problems) - FAULTS_TOLD} more" if len(problems) > FAULTS_TOLD else ""
    return f"{'; '.join(told)}{more}."


def _reason(problem: Any) -> str:
    return "this setting is not known" if problem["type"] == "extra_forbidden" else reason_of(problem)
