"""The frozen specification a job was accepted with, and the run a worker makes of it.

Every ``"auto"`` among the hyperparameters has been replaced by the value that is used, so that what a job shows is what
it runs (``service.jobs.hyperparameters``). ``JobSpec`` is stored with the job and never changes; its ``method`` says
what is done with the rows. ``RunSpec`` adds what only a worker knows (where files and checkpoints are) and is all that
the training child ever sees.
"""

from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field

from service.contracts.engines import MEMORY_SHARE
from service.graders.settings import GraderSettings
from service.jobs.hyperparameters.option import Frozen
from service.jobs.integrations import Integration
from service.jobs.methods.registry import Method


class JobSpec(Frozen):
    """What the user asked for, checked and resolved; stored with the job and never changed."""

    model: str
    training_file: str | None
    """None where the method does not train."""
    validation_file: str | None
    method: Annotated[Method, Field(discriminator="type")]
    seed: int = Field(ge=0, le=2**31 - 1)
    suffix: str | None = None
    integrations: list[Integration] = Field(default_factory=list)

    def with_answers_of(self, most: int) -> "JobSpec":
        """The same with answers of ``most`` tokens at most, where longer ones were asked for."""
        return self.model_copy(update={"method": self.method.with_answers_of(most)})


class RunSpec(Frozen):
    """One attempt at a job, as the supervisor hands it to the training child."""

    job_id: str
    attempt: int
    job: JobSpec
    model_path: Path
    """Folder of the base model."""
    training_path: Path
    """Where the job's rows lie; nothing does where the method does not train."""
    validation_path: Path | None
    validation_set_paths: list[Path] = Field(default_factory=list)
    """Files of the method's ``validation_sets``, in their order."""
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
