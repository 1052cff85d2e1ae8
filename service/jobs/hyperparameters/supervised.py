"""The hyperparameters of supervised fine-tuning."""

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from service.jobs.hyperparameters.option import Asked, Auto, Option, asked_of
from service.jobs.hyperparameters.shared import SharedHyperparameters, passes, rate, rows_per_step


class ResolvedSupervisedHyperparameters(SharedHyperparameters):
    """Hyperparameters of supervised fine-tuning with every ``"auto"`` replaced by the value the run uses."""

    default_learning_rate: ClassVar[float] = 1e-5

    batch_size: Annotated[int, rows_per_step("conversations per step, which is one optimizer update", 16)]
    n_epochs: Annotated[int, passes(3)]
    learning_rate: Annotated[float, rate("AdamW's learning rate at its highest", default_learning_rate)]
    warmup_steps: Annotated[
        int,
        Option(
            doc="steps over which the learning rate rises",
            auto=Auto(lambda known: math.ceil(known.n_steps / 20), "a twentieth of `n_steps`"),
            ge=0,
            le=10_000,
        ),
    ]
    schedule: Annotated[
        Literal["linear", "constant"],
        Option(doc="after that it falls, almost to 0 at the last step, or stays", default="linear"),
    ]


if TYPE_CHECKING:

    class SupervisedHyperparameters(Asked[ResolvedSupervisedHyperparameters]):
        def __init__(self, **asked: Any) -> None: ...

else:
    SupervisedHyperparameters = asked_of(
        ResolvedSupervisedHyperparameters,
        "SupervisedHyperparameters",
        "Hyperparameters of supervised fine-tuning as a user gives them.",
    )
