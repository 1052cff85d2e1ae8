"""Validation sets: files that a model is evaluated on beside, or without, the job's one validation file.

Each has its name, its sampling and perhaps a grader of its own. What is left out is the job's.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from service.contracts.engines import Engine
from service.contracts.spelling import Spelled
from service.graders.schemas import Grader
from service.jobs.hyperparameters.option import Frozen

MAX_SETS = 16
NAME_CHARACTERS = "the letters A to Z and a to z, digits, '_' and '-', and no spaces"
# A name is a part of metrics' names, which have dots between their parts.
SetName = Annotated[str, StringConstraints(min_length=1, max_length=64), Spelled("[A-Za-z0-9_-]*", NAME_CHARACTERS)]


def data_name(number: int) -> str:
    """What the job's own rows of a set are called, beside ``training`` and ``validation``."""
    return f"validation-{number}"


class AskedSet(Frozen):
    """A validation set as it is asked for."""

    name: SetName
    file: str = Field(min_length=1, max_length=255)
    grader: Grader | None = Field(None, description="Where it is left out, the method's.")
    samples_per_row: int | None = Field(None, ge=1, le=256, description="Where it is left out, `eval_samples`.")
    temperature: float | None = Field(None, ge=0, le=2, description="Where it is left out, `eval_temperature`.")
    top_p: float | None = Field(None, gt=0, le=1, description="Where it is left out, 1.")
    max_completion_tokens: int | None = Field(
        None, ge=1, le=131_072, description="Where it is left out, the hyperparameter's."
    )

    def resolved(self, rows: int, hyperparameters: Any) -> "ValidationSet":
        """As it is run, for a file of ``rows`` rows. Sampling follows ``hyperparameters`` where nothing is said."""
        h = hyperparameters
        return ValidationSet(
            name=self.name,
            file=self.file,
            rows=rows,
            grader=self.grader,
            samples_per_row=h.eval_samples if self.samples_per_row is None else self.samples_per_row,
            temperature=h.eval_temperature if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            max_completion_tokens=self.max_completion_tokens or h.max_completion_tokens,
        )


class ValidationSet(Frozen):
    """A validation set as it is stored and run."""

    name: SetName
    file: str
    rows: int
    grader: Grader | None
    """None where the method's grades it."""
    samples_per_row: int
    temperature: float
    top_p: float
    max_completion_tokens: int

    def with_answers_of(self, most: int) -> "ValidationSet":
        """The same with answers of ``most`` tokens at most, where longer ones were asked for."""
        return self.model_copy(update={"max_completion_tokens": min(self.max_completion_tokens, most)})

    def fault(self, engine: Engine) -> tuple[Literal["temperature"], str] | None:
        """A setting that ``engine`` cannot sample with, and why, in sentences."""
        if not 0 < self.temperature < engine.lowest_temperature:
            return None
        return "temperature", (
            f"{engine.title} would sample at {engine.lowest_temperature} instead. Set temperature to at least that, or "
            "to 0."
        )
