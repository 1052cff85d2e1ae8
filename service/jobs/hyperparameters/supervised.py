"""The hyperparameters of supervised fine-tuning."""

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from service.jobs.hyperparameters.option import Asked, Auto, Option, asked_of
from service.jobs.hyperparameters.shared import (
    EPOCHS,
    NO_MORE_ROWS,
    STEPS_DECIDE,
    SharedHyperparameters,
    rate_of_multiplier,
)


class ResolvedSupervisedHyperparameters(SharedHyperparameters):
    """Hyperparameters of supervised fine-tuning with every ``"auto"`` replaced by the value the run uses."""

    default_learning_rate: ClassVar[float] = 1e-5

    batch_size: Annotated[
        int,
        Option(
            doc="conversations per step, which is one optimizer update",
            auto=Auto(16, "16, or all rows if fewer"),
            overrule=NO_MORE_ROWS,
            ge=1,
            le=1024,
        ),
    ]
    n_epochs: Annotated[int, Option(doc=EPOCHS, auto=Auto(3), overrule=STEPS_DECIDE, ge=1, le=50)]
    learning_rate: Annotated[
        float,
        Option(
            doc="AdamW's learning rate at its highest",
            auto=Auto(rate_of_multiplier, "1e-5 × `learning_rate_multiplier`, or 1e-4 × it with LoRA"),
            gt=0,
            le=1,
        ),
    ]
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
