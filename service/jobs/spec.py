"""The frozen specification a job was accepted with, and the run a worker makes of it.

Every ``"auto"`` among the hyperparameters has been replaced by the value that is used, so that what a job shows is what
it runs (``service.jobs.hyperparameters``). ``JobSpec`` is stored with the job and never changes; its ``method`` says
what is done with the rows. ``RunSpec`` adds what only a worker knows (where files and checkpoints are) and is all that
the training child ever sees.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, ValidationError, field_validator

from service.contracts.engines import MEMORY_SHARE
from service.contracts.response_format import ResponseFormat
from service.graders.schemas import Grader
from service.graders.settings import GraderSettings
from service.jobs.hyperparameters.option import Frozen
from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from service.jobs.hyperparameters.supervised import ResolvedSupervisedHyperparameters
from service.jobs.integrations import Integration


class Reinforcement(Frozen):
    """Answers are sampled and graded, and the better ones become more likely."""

    type: Literal["reinforcement"] = "reinforcement"
    grader: Grader
    hyperparameters: ResolvedHyperparameters
    response_format: dict[str, Any] | None = None
    """As it was sent."""

    @field_validator("response_format")
    @classmethod
    def _is_known(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            ResponseFormat.model_validate(value or {"type": "text"})
        except ValidationError as error:
            raise ValueError("this is not a response format that is known here") from error
        return value

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """What answers are held to."""
        return None if self.response_format is None else ResponseFormat.model_validate(self.response_format).schema_


class Supervised(Frozen):
    """The assistant's messages of the rows become more likely."""

    type: Literal["supervised"] = "supervised"
    hyperparameters: ResolvedSupervisedHyperparameters


Method = Annotated[Reinforcement | Supervised, Field(discriminator="type")]


class JobSpec(Frozen):
    """What the user asked for, checked and resolved; stored with the job and never changed."""

    model: str
    training_file: str
    validation_file: str | None
    method: Method
    seed: int = Field(ge=0, le=2**31 - 1)
    suffix: str | None = None
    integrations: list[Integration] = Field(default_factory=list)

    def with_answers_of(self, most: int) -> "JobSpec":
        """The same with answers of ``most`` tokens at most, where longer ones were asked for."""
        method = self.method
        if isinstance(method, Supervised) or method.hyperparameters.max_completion_tokens <= most:
            return self
        shorter = method.hyperparameters.model_copy(update={"max_completion_tokens": most})
        return self.model_copy(update={"method": method.model_copy(update={"hyperparameters": shorter})})


class RunSpec(Frozen):
    """One attempt at a job, as the supervisor hands it to the training child."""

    job_id: str
    attempt: int
    job: JobSpec
    model_path: Path
    """Folder of the base model."""
    training_path: Path
    validation_path: Path | None
    checkpoints: list[Path]
    """Checkpoint folders of earlier attempts, newest first; the newest intact one is resumed from."""
    output_dir: Path
    """Folder of this attempt; checkpoints and the final model are written beneath it."""
    checkpoints_kept: int = 3
    """How many of the best checkpoints are kept beside the newest."""
    rollout_tensor_parallel: int = 1
    """How many of the job's processes share one vLLM engine."""
    rollout_memory_share: float = MEMORY_SHARE
    """Share of the GPU's memory for vLLM; the trainer needs the rest."""
    now: AwareDatetime | None = None
    """When it is for chat templates that ask, the same in every attempt; None is when they ask."""
    graders: GraderSettings = GraderSettings()
    """What the operator allows of graders: the jail, the judges, the scoring services."""
