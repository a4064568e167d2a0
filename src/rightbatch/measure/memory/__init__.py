"""Traces of the storages of a training step, under fake tensors and from real kernels."""

from rightbatch.measure.memory.cuda_proxy import trace_cuda as trace_cuda
from rightbatch.measure.memory.fake import trace_memory as trace_memory
from rightbatch.measure.memory.kernels import trace_kernels as trace_kernels
from rightbatch.measure.memory.ladder import iterate_memory_traces as iterate_memory_traces
from rightbatch.measure.memory.ladder import measure_memory as measure_memory
