"""Why a run ends when its user, or whoever runs the machine, can do something about it."""

from workers.wire import ExitCode, Failure


class RunError(Exception):
    """Ends the run with ``exit_code``; ``code``, ``message`` and ``param`` become those of the job's error.

    A ``param`` of the job's method is written from there on: ``hyperparameters.learning_rate``.
    """

    def __init__(
        self, code: str, message: str, *, param: str | None = None, exit_code: int = ExitCode.USER_ERROR
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.param, self.exit_code = code, message, param, exit_code

    def failure(self) -> Failure:
        return Failure(code=self.code, message=self.message, param=self.param)


def non_finite(what: str) -> RunError:
    return RunError(
        f"non_finite_{what}",
        f"The {what} became NaN or infinite; the weights were not updated with it. Lower learning_rate, or raise "
        "warmup_steps.",
        param="hyperparameters.learning_rate",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of the GPU."""
    # On a GPU torch has a class of its own for it; its CPU allocator, cuBLAS and Triton raise a plain RuntimeError.
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    text = str(error)
    if isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY):
        return True
    return any(words in text for words in _OF_CUDNN) and _gpu_is_full()


_NO_MEMORY = ("DefaultCPUAllocator: can't allocate", "out of memory", "STATUS_ALLOC_FAILED")
_OF_CUDNN = ("mha_graph.execute", "CUDNN_STATUS_INTERNAL_ERROR", "CUDNN_STATUS_EXECUTION_FAILED")
"""What cuDNN says of many things, memory that ran out among them."""
FULL = 0.02


def _gpu_is_full() -> bool:
    """Whether next to nothing of this GPU's memory is free."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return free < FULL * total
