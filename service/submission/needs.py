"""The GPU memory that a job needs at least, by the size of its base model.

It is a bound from below: activations, keys and values, and what allocators waste come on top. A worker with less cannot
run the job; one with more may still run out, which the check before training finds.
"""

from service.jobs.methods.definition import FROZEN_BYTES, READ_BYTES
from service.jobs.spec import JobSpec


def gpu_bytes(
    parameters: int | None, spec: JobSpec, *, memory_share: float, tensor_parallel: int, processes: int
) -> int:
    """Bytes of all GPUs of a worker together; 0 where the base model's size is not known.

    A sampler with weights of its own has ``memory_share`` of each GPU, and the ``tensor_parallel`` of the ``processes``
    that share one split its weights. While it sleeps the trainer has all of the memory; it does not where answers are
    sampled ahead.
    """
    if parameters is None:
        return 0
    method, engine = spec.method, spec.method.engine
    trained = parameters * method.bytes_of_parameter
    if engine is None or not engine.own_weights:
        # A copy samples. Adapters are small, and the frozen weights beneath them serve both.
        copied = method.samples_ahead and method.trains_all_weights
        return trained + (parameters * READ_BYTES if copied else 0)
    samplers = max(1, processes // tensor_parallel)
    sampling = round(parameters * FROZEN_BYTES * samplers / memory_share)
    training = round(trained / (1 - memory_share)) if method.samples_ahead else trained
    return max(training, sampling)
