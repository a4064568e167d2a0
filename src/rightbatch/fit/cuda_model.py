"""Memory of a CUDA device at any micro-batch size, in the form in which the planner asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from rightbatch.core.samples import MemoryTrace
from rightbatch.fit.cuda_memory import CudaMemory, largest_micro_batch, predict_cuda_memory
from rightbatch.fit.memory_law import LARGEST_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaMemoryModel:
    """Replays of traced steps through the caching allocator; nothing was run."""

    traces: tuple[MemoryTrace, ...]
    capability: tuple[int, int]
    known: dict[int, CudaMemory] = field(default_factory=dict[int, CudaMemory], compare=False)
    """Sizes that were replayed already."""

    @property
    def valid_range(self) -> tuple[int, int]:
        """Sizes that may be asked for."""
        return 1, LARGEST_SIZE

    def peak_bytes(self, micro_batch_size: int) -> int:
        """Bytes that the allocator reserves, as ``torch.cuda.max_memory_reserved`` would say."""
        return self._replayed(micro_batch_size).reserved_bytes

    def high_bytes(self, micro_batch_size: int) -> int:
        """The same with the largest CUDA context that was seen."""
        return self._replayed(micro_batch_size).high_bytes

    def max_micro_batch(self, limit_bytes: int, headroom: float = 0.0) -> int:
        """Largest micro-batch size that fits a share of a limit, context included.

        Raises:
            InfeasibleError: one example does not fit.
        """
        usable = int(limit_bytes * (1 - headroom))
        return largest_micro_batch(self.traces, usable, capability=self.capability).micro_batch_size

    def _replayed(self, size: int) -> CudaMemory:
        if size not in self.known:
            self.known[size] = predict_cuda_memory(self.traces, size, capability=self.capability)
        return self.known[size]
