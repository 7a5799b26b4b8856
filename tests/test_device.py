"""The device that a name means, and what counts as memory that ran out: the words of every library below torch."""
import pytest
import torch

from pixart.device import best_device, checked_device, is_out_of_memory, memory_advice


def test_no_name_means_the_best_device_and_an_empty_one_none():
    assert checked_device(None) == torch.device(best_device())
    with pytest.raises(ValueError, match="'' is not a device; use cpu"):
        checked_device("")


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("CUDA error: out of memory"), RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError("Could not allocate tensor with 4294967296 bytes. There is not enough GPU video memory available!")],
    ids=str)
def test_memory_that_ran_out_is_known_by_what_is_said(error):
    assert is_out_of_memory(error)
    if isinstance(error, RuntimeError):
        with pytest.raises(MemoryError, match="on cpu while sampling; generate less"), \
                memory_advice(torch.device("cpu"), "sampling", "generate less"):
            raise error


@pytest.mark.parametrize("error", [
    RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory"),
    RuntimeError("Expected all tensors to be on the same device")], ids=str)
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)
