"""What every method says of itself: the base of the classes that ``service.jobs.methods.registry`` lists.

A method is what is stored of it in a job's specification. Its fields are those of a request too, where
``hyperparameters`` are ``asked``; ``type`` is a field of every method, which declares it itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel

from service.contracts.engines import Engine
from service.files.dataset import DatasetReport
from service.graders.schemas import Grader
from service.jobs.hyperparameters.option import Asked, Frozen, ToldToTemplates
from service.jobs.hyperparameters.shared import SharedHyperparameters
from service.jobs.validation import ValidationSet

TRAINED_BYTES = 16
"""Of a parameter that is trained: weight, gradient, and AdamW's two moments, in float32."""
FROZEN_BYTES = 2
"""Of one beneath an adapter, and of one that samples."""
READ_BYTES = 4
"""Of one that is only read, in float32 as if it were trained."""


class MethodDefinition(Frozen, ABC):
    asked: ClassVar[type[Asked[Any]]]
    """The hyperparameters that may be asked for; its ``resolved`` are the class of ``hyperparameters``."""
    metrics: ClassVar[type[BaseModel]]
    """What a step's event tells."""
    trains: ClassVar[bool] = True
    """Whether it has a training file, and makes a model."""
    needs_validation_file: ClassVar[bool] = False
    result_columns: ClassVar[Mapping[str, str] | None] = None
    """Columns of the result file, and the metrics in them; None is all metrics under their own names."""

    hyperparameters: ToldToTemplates

    @classmethod
    def parts(cls) -> list[str]:
        """What ``method.TYPE`` of a request may hold."""
        return [name for name in cls.model_fields if name != "type"]

    @classmethod
    def needed(cls) -> list[str]:
        """Those that it must hold."""
        return [name for name in cls.parts() if name != "hyperparameters" and cls.model_fields[name].is_required()]

    @classmethod
    @abstractmethod
    def fits(cls, row: dict[str, Any]) -> bool:
        """Whether a row looks like one for this method."""

    @classmethod
    @abstractmethod
    def check_file(cls, path: Path, grader: Grader | None, give_up_at: float | None = None) -> DatasetReport:
        """What is wrong with a file of such a job. Raises ``TimeoutError`` at ``give_up_at``, a monotonic time."""

    @property
    def longest_answer(self) -> int | None:
        """How many tokens the answers have at most that are sampled; None where none are."""
        return None

    @property
    def engine(self) -> Engine | None:
        """What samples answers; None where none are."""
        return None

    @property
    def sets(self) -> Sequence[ValidationSet]:
        """What is evaluated beside the validation file."""
        return ()

    @property
    def samples_ahead(self) -> bool:
        """Whether answers are sampled while the model is trained."""
        return False

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """How many steps there are."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many answers, or conversations, all steps take together."""

    @property
    def trains_all_weights(self) -> bool:
        """Whether every weight has a gradient."""
        return False

    @property
    @abstractmethod
    def bytes_of_parameter(self) -> int:
        """GPU memory that a parameter of the base model takes at least, without what a sampler's own weights take."""

    @property
    @abstractmethod
    def cost_factors(self) -> tuple[object, ...]:
        """What makes a sample of one job as dear as another's."""

    def with_answers_of(self, most: int) -> Self:
        """The same with answers of ``most`` tokens at most, where longer ones were asked for."""
        return self


class Training(MethodDefinition):
    """The base of those that train."""

    hyperparameters: SharedHyperparameters

    @property
    def samples_per_row(self) -> int:
        """How many samples a step takes of each row."""
        return 1

    @property
    def total_steps(self) -> int:
        return self.hyperparameters.n_steps

    @property
    def samples(self) -> int:
        return self.hyperparameters.n_steps * self.hyperparameters.batch_size * self.samples_per_row

    @property
    def trains_all_weights(self) -> bool:
        return not self.hyperparameters.lora_rank

    @property
    def bytes_of_parameter(self) -> int:
        return TRAINED_BYTES if self.trains_all_weights else FROZEN_BYTES

    @property
    def cost_factors(self) -> tuple[object, ...]:
        return (bool(self.hyperparameters.lora_rank),)
