import errno
import signal

import pytest
import torch

from rightbatch.core.errors import InvalidTaskError
from rightbatch.measure.memory.failure import classify_error, classify_exit

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"
KNOWN = [
    torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 15.78 GiB total capacity)"),
    RuntimeError(f"{CPU} tried to allocate 104857600 bytes. Error code 12 (Cannot allocate memory)"),
    RuntimeError("[enforce fail at CPUAllocator.cpp:64] . DefaultCPUAllocator: not enough memory: you"),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.13 GB, max allowed: 18.13 GB)"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("XPU out of memory. Tried to allocate 1.17 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("could not create a memory object"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]
LOOK_ALIKES = [
    ValueError("on_error must be 'raise' or 'CUDA out of memory'"),
    RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-"
    ),
    RuntimeError("unsupported operation: elements refer to a single memory location. Please clone()"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),
    RuntimeError("unsupported memory format option Preserve"),
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("Expected more than 1 value per channel when training, got input size [1, 8]"),
    IndexError("index 8 is out of bounds for dimension 0 with size 8"),
    KeyError("out of memory"),
]
TOO_LARGE = [
    RuntimeError("CUDA error: invalid configuration argument\nCUDA kernel errors might be reported"),
    RuntimeError("Expected canUse32BitIndexMath(input) && canUse32BitIndexMath(output) to be true"),
    RuntimeError("Storage size calculation overflowed with sizes=[4611686018427387904, 4]"),
]


@pytest.mark.parametrize("error", KNOWN, ids=lambda e: str(e)[:40] or type(e).__name__)
def test_what_allocators_and_libraries_print_is_out_of_memory(error: Exception) -> None:
    verdict = classify_error(error)
    assert (verdict.outcome, verdict.is_guess) == ("out_of_memory", False)


@pytest.mark.parametrize("error", LOOK_ALIKES, ids=lambda e: str(e)[:40])
def test_what_only_sounds_like_it_is_not(error: Exception) -> None:
    assert classify_error(error).outcome == "failed"


@pytest.mark.parametrize("error", TOO_LARGE, ids=lambda e: str(e)[:40])
def test_a_size_that_no_kernel_takes_is_an_outcome_of_its_own(error: Exception) -> None:
    assert classify_error(error).outcome == "too_large_for_kernel"


def test_torch_still_says_what_the_wordings_expect() -> None:
    for size, outcome in ((2**46, "out_of_memory"), (2**62, "too_large_for_kernel")):
        with pytest.raises(RuntimeError, match=r"allocate|overflow") as caught:
            torch.empty(size, 4)
        assert classify_error(caught.value).outcome == outcome


def test_a_cause_is_looked_through_and_a_mere_context_is_not() -> None:
    def wrapped(*, chained: bool) -> Exception:
        try:
            try:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            except RuntimeError as error:
                task_error = InvalidTaskError("model() raised", need="a model", hint="call it")
                raise task_error from error if chained else None
        except InvalidTaskError as error:
            return error

    assert classify_error(wrapped(chained=True)).outcome == "out_of_memory"
    assert classify_error(wrapped(chained=False)).outcome == "failed"


def test_a_vague_message_is_a_guess_and_says_so() -> None:
    text = "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
    verdict = classify_error(RuntimeError(text))
    assert (verdict.outcome, verdict.is_guess) == ("out_of_memory", True)
    assert verdict.message == f"RuntimeError: {text}"


def test_exits_are_read_from_signal_code_and_last_words() -> None:
    killed = classify_exit(-signal.SIGKILL, "")
    assert (killed.outcome, killed.is_guess) == ("out_of_memory", True)
    last_words = "terminate called after throwing an instance of 'std::bad_alloc'"
    assert classify_exit(-signal.SIGABRT, last_words).outcome == "out_of_memory"
    assert not classify_exit(-signal.SIGABRT, last_words).is_guess
    assert classify_exit(-signal.SIGSEGV, "").outcome == "failed"
    assert classify_exit(-signal.SIGSEGV, "").message == "SIGSEGV"
    assert classify_exit(1, "ModuleNotFoundError: no module").message.startswith("exit code 1: Module")
