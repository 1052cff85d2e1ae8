"""What counts as memory that ran out."""

import pytest
import torch

from workers.errors import is_out_of_memory

MHA = "Expected mha_graph.execute(handle, variant_pack, workspace_ptr.get()).is_good() to be true, but got false."


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: 8000000000 bytes"
        ),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_ran_out(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("free", [0.5, 0.01])
@pytest.mark.parametrize("text", [MHA, "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"])
def test_what_cudnn_says_counts_where_the_gpu_is_full(text: str, free: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free * 80e9), int(80e9)))
    assert is_out_of_memory(RuntimeError(text)) == (free < 0.02)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_are_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)
