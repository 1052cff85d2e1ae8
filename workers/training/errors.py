"""Why a run ends when its user, or whoever runs the machine, can do something about it."""

from collections import Counter
from collections.abc import Mapping, Sequence

from service.contracts import disk
from service.graders.schemas import GraderError
from workers.errors import RunError, is_out_of_memory, non_finite
from workers.graders import JailError
from workers.rollouts.engine import NonFiniteLogitsError
from workers.rollouts.errors import EngineUnavailableError, PromptsTooLongError, StaleWeightsError
from workers.wire import ExitCode

PARTS = ("grader", "hyperparameters", "response_format")
"""Of a method: a param that begins with one is within ``method.TYPE`` of the request."""
_IN_TRAINING = (
    "Out of memory while training. Lower max_completion_tokens, set gradient_checkpointing to always, set a lora_rank, "
    "or choose a smaller model."
)
_IN_EVALUATION = "Out of memory while evaluating. Lower max_completion_tokens or eval_samples."
OUT_OF_MEMORY = {
    "loading": (
        "The model does not fit into memory: training takes 16 bytes a parameter. Choose a smaller model, or set "
        "lora_rank: a frozen model takes 2 bytes a parameter on a GPU. A critic (advantage gae) takes as much "
        "again, and without LoRA a reference (kl_coefficient) 4 bytes a parameter."
    ),
    "sampling": "Out of memory while sampling. Lower max_completion_tokens, batch_size or group_size.",
    "preflight": _IN_TRAINING,
    "old_log_probs": _IN_TRAINING,
    "reference_log_probs": _IN_TRAINING,
    "values": _IN_TRAINING,
    "training": _IN_TRAINING,
    "eval": _IN_EVALUATION,
}


def grader_failed(samples: int, reasons: Sequence[str]) -> RunError:
    """The grader failed on too many of ``samples``, with these ``reasons``."""
    most = Counter(reasons).most_common(1)[0][0]
    message = f"The grader failed on {len(reasons)} of {samples} samples, most often with {most}"
    return RunError("grader_failed", message, param="grader", exit_code=ExitCode.GRADER_ERROR)


def explain(error: BaseException, phase: str, method: str | None, out_of_memory: Mapping[str, str]) -> RunError | None:
    """The ``RunError`` that ``error`` amounts to, or None when it is a bug.

    ``phase`` is what the run, of a job of ``method``, was at; ``out_of_memory`` is what the method says of some phases.
    Without a method nothing is known of the job yet.
    """
    known = _explain(error, phase, out_of_memory)
    if method is not None and known is not None and known.param is not None and known.param.partition(".")[0] in PARTS:
        known.param = f"method.{method}.{known.param}"
    return known


def _explain(error: BaseException, phase: str, out_of_memory: Mapping[str, str]) -> RunError | None:
    if isinstance(error, RunError):
        return error
    if isinstance(error, NonFiniteLogitsError):
        return non_finite("logits")
    # These need torch, which the environment has to be set up for first.
    from torch._dynamo.exc import TorchDynamoException

    from workers.modeling.compilation import reason
    from workers.rollouts.grammar import GrammarFailedError
    from workers.rollouts.probe import WeightsOutOfSyncError

    if isinstance(error, GrammarFailedError):
        return RunError("invalid_json_schema", str(error), param="response_format")
    if isinstance(error, EngineUnavailableError):
        return RunError("engine_unavailable", str(error), exit_code=ExitCode.UNAVAILABLE)
    if isinstance(error, WeightsOutOfSyncError | StaleWeightsError):
        return RunError("weights_out_of_sync", str(error))
    if isinstance(error, PromptsTooLongError):
        return RunError("prompts_too_long", str(error), param="training_file")
    if isinstance(error, GraderError):
        return RunError("invalid_grader", error.message, param="grader")
    if isinstance(error, JailError):
        return RunError("jail_unavailable", str(error), exit_code=ExitCode.UNAVAILABLE)
    if is_out_of_memory(error):
        message = {**OUT_OF_MEMORY, **out_of_memory}.get(phase, f"Out of memory while {phase}. Choose a smaller model.")
        return RunError("out_of_memory", message)
    if disk.is_full(error):
        return RunError("disk_full", "The disk is full.", exit_code=ExitCode.NO_ROOM)
    if isinstance(error, TorchDynamoException):
        message = f"torch could not compile the model's layers. Set torch_compile to never. ({reason(error)})"
        return RunError("compilation_failed", message, param="hyperparameters.torch_compile")
    return None
