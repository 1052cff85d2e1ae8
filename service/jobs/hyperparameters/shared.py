"""What every method takes. OpenAI's names come first; the rest are this service's own.

Rules read what is declared above their hyperparameter resolved, and the others as they were asked for.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

from service.jobs.hyperparameters.option import AUTO, Auto, Option, Overrule, ToldToTemplates

LORA_LEARNING_RATE_FACTOR = 10
"""How many times the default learning rate of all weights is that of adapters."""


def rate_of_multiplier(known: Any) -> float:
    """The learning rate that ``learning_rate_multiplier`` makes of the method's default."""
    rate: float = _default_rate(known) * known.learning_rate_multiplier
    return rate


def _default_rate(known: Any) -> float:
    rate: float = known.kind.default_learning_rate
    return rate * (LORA_LEARNING_RATE_FACTOR if known.lora_rank else 1)


def _times_the_default(multiplier: float, known: Any) -> float:
    if known.learning_rate == AUTO:
        return multiplier
    return float(f"{known.learning_rate / _default_rate(known):.12g}")


def _passes_begun(epochs: int, known: Any) -> int:
    if known.n_steps == AUTO:
        return epochs
    passes: int = math.ceil(known.n_steps * known.batch_size / known.training_rows)
    return passes


NO_MORE_ROWS = Overrule(lambda size, known: min(size, known.training_rows), "the training file has no more rows")
STEPS_DECIDE = Overrule(_passes_begun, "n_steps decides")


# What every method declares for itself, with its own default.


def rows_per_step(doc: str, default: int) -> Option:
    said = f"{default}, or all rows if fewer"
    return Option(doc=doc, auto=Auto(default, said), overrule=NO_MORE_ROWS, ge=1, le=1024)


def passes(default: int) -> Option:
    doc = "passes over the training file, unless `n_steps` is given; the last step takes what is left"
    return Option(doc=doc, auto=Auto(default), overrule=STEPS_DECIDE, ge=1, le=50)


def rate(doc: str, default: float) -> Option:
    of_adapters = f"{default * LORA_LEARNING_RATE_FACTOR:.0e}".replace("e-0", "e-")
    of_all = f"{default:.0e}".replace("e-0", "e-")
    said = f"{of_all} × `learning_rate_multiplier`, or {of_adapters} × it with LoRA"
    return Option(doc=doc, auto=Auto(rate_of_multiplier, said), gt=0, le=1)


class SharedHyperparameters(ToldToTemplates):
    """Those without an ``Option`` here have one in each method's class, for they differ in their defaults."""

    default_learning_rate: ClassVar[float]
    """Of all weights."""

    batch_size: int
    learning_rate_multiplier: Annotated[
        float,
        Option(
            doc="OpenAI's name; shows what `learning_rate` amounts to where that is given",
            auto=Auto(1.0, "1"),
            overrule=Overrule(_times_the_default, "learning_rate decides"),
            gt=0,
            le=1000,
        ),
    ]
    n_epochs: int
    n_steps: Annotated[
        int,
        Option(
            doc="steps",
            auto=Auto(
                lambda known: math.ceil(known.training_rows * known.n_epochs / known.batch_size),
                "`n_epochs` over the training file",
            ),
            ge=1,
            le=100_000,
        ),
    ]
    learning_rate: float
    lora_rank: Annotated[
        int,
        Option(
            doc="rank of LoRA adapters on every linear layer but the output layer; 0 trains all weights",
            default=0,
            ge=0,
            le=512,
        ),
    ]
    # The same for every rank: what a step changes then hardly depends on the rank, nor does the best learning rate.
    lora_alpha: Annotated[
        int, Option(doc="LoRA: adapters count `lora_alpha / lora_rank`", auto=Auto(32), ge=1, le=4096)
    ]
    gradient_checkpointing: Annotated[
        Literal["gpu", "always", "never"],
        Option(
            doc=(
                "where layers are computed again for the backward pass, which costs time and saves memory; results "
                "are the same"
            ),
            default="gpu",
        ),
    ]
    torch_compile: Annotated[
        Literal["gpu", "never"],
        Option(
            doc=(
                "where torch compiles the model's layers for training: some 20 seconds at the start, then faster "
                "updates that take less memory; jobs of several GPUs go without"
            ),
            default="gpu",
        ),
    ]
    eval_interval: Annotated[
        int,
        Option(
            doc="steps between evaluations; each saves a checkpoint",
            auto=Auto(lambda known: max(1, math.ceil(known.n_steps / 10)), "a tenth of `n_steps`"),
            ge=1,
            le=100_000,
        ),
    ]
    weight_decay: Annotated[float, Option(doc="AdamW's weight decay", default=0.0, ge=0, le=1)]
    max_grad_norm: Annotated[float, Option(doc="gradients are scaled down to this norm", default=1.0, gt=0, le=1000)]
    chat_template_kwargs: Annotated[
        dict[str, Any],
        Option(
            doc=(
                'what the chat template is told beside the messages, as in `{"enable_thinking": false}`; remembered by '
                "the result"
            ),
            default={},
            allowed="names that the chat template reads",
        ),
    ]
