"""From a stream of storages to what a device would report, at any batch size."""

from __future__ import annotations

import pytest

from rightbatch.core.errors import InfeasibleError, InvalidInputError, MeasurementError
from rightbatch.core.samples import MemoryTrace
from rightbatch.fit.caching_allocator import AllocatorOptions
from rightbatch.fit.cuda_memory import (
    CONTEXT_BYTES,
    Change,
    changes_at,
    cublas_workspace_bytes,
    largest_micro_batch,
    predict_cuda_memory,
    replay,
)

MIB = 2**20
WORKSPACE = cublas_workspace_bytes((8, 0))
FIXED, EACH = 3 * MIB, 5 * MIB + 100


def trace(
    size: int, *, square: int = 0, cube: int = 0, products: bool = True, names: bool = True
) -> MemoryTrace:
    """Weights, an activation that grows with the batch, a gradient, each dying but the first."""
    activation = EACH * size + square * size**2 + cube * size**3
    rows = [  # bytes, operator, phase, storage
        (FIXED, 0, 0, 0),
        (activation, 1, 1, 1),
        (activation, 1, 2, 2),
        (-activation, 1, 2, 1),
        (-activation, 1, 3, 2),
    ]
    return MemoryTrace(
        micro_batch_size=size,
        source="fake cuda",
        delta_bytes=tuple(row[0] for row in rows),
        operator=tuple(row[1] for row in rows),
        phase=tuple(row[2] for row in rows),
        owner=(0,) * len(rows),
        operators=("setup", "aten.mm" if products else "aten.relu"),
        phases=("setup", "forward", "backward", "optimizer"),
        owners=("parameters",),
        storage=tuple(row[3] for row in rows) if names else (),
        caveats=(f"seen at {size}",),
    )


def test_tensors_and_two_workspaces_make_the_requested_peak() -> None:
    predicted = predict_cuda_memory([trace(4)], 4)
    assert predicted.requested_bytes == FIXED + 2 * 4 * EACH + 2 * WORKSPACE
    assert predicted.workspace_bytes == 2 * WORKSPACE
    assert predicted.requested_bytes < predicted.allocated_bytes < predicted.reserved_bytes
    assert predicted.low_bytes - predicted.reserved_bytes == CONTEXT_BYTES[0]
    assert predicted.high_bytes - predicted.reserved_bytes == CONTEXT_BYTES[1]


def test_a_step_without_matrix_products_takes_no_workspace() -> None:
    predicted = predict_cuda_memory([trace(4, products=False)], 4)
    assert (predicted.workspace_bytes, predicted.requested_bytes) == (0, FIXED + 2 * 4 * EACH)


def test_each_workspace_comes_with_the_first_product_of_its_phase() -> None:
    changes, _ = changes_at([trace(2)], 2, (9, 0))
    sizes = [change.delta_bytes for change in changes]
    large = 32 * MIB
    assert sizes[:5] == [FIXED, 2 * EACH, large, 2 * EACH, large]
    assert len({change.storage for change in changes if change.delta_bytes == large}) == 2


@pytest.mark.parametrize("size", [1, 4, 64, 1000])
def test_two_sizes_give_the_stream_of_any_other(size: int) -> None:
    assert changes_at([trace(2), trace(3)], size, (8, 0)) == changes_at([trace(size)], size, (8, 0))


def test_a_lone_example_with_ways_of_its_own_changes_no_other_size() -> None:
    lone = trace(1, products=False)
    law, with_lone = ([*first, trace(2), trace(3)] for first in ([], [lone]))
    assert changes_at(with_lone, 64, (8, 0)) == changes_at(law, 64, (8, 0))
    assert changes_at(with_lone, 1, (8, 0)) == changes_at([lone], 1, (8, 0))


def test_three_sizes_give_it_where_examples_meet_each_other() -> None:
    anchors = [trace(size, square=12) for size in (2, 3, 5)]
    expected = changes_at([trace(100, square=12)], 100, (8, 0))
    assert changes_at(anchors, 100, (8, 0)) == expected
    assert changes_at(anchors[:2], 100, (8, 0)) != expected


def test_four_sizes_give_it_where_three_examples_meet() -> None:
    anchors = [trace(size, cube=12) for size in (2, 3, 5, 9)]
    expected = changes_at([trace(100, cube=12)], 100, (8, 0))
    assert changes_at(anchors, 100, (8, 0)) == expected
    assert changes_at(anchors[:3], 100, (8, 0)) != expected


def test_caveats_of_every_trace_are_passed_on() -> None:
    predicted = predict_cuda_memory([trace(2), trace(3)], 8)
    assert predicted.caveats == ("seen at 2", "seen at 3")


def test_traces_that_do_not_align_are_refused() -> None:
    with pytest.raises(MeasurementError, match="sizes 2, 3 that do not align"):
        predict_cuda_memory([trace(2), trace(3, products=False)], 8)


def test_one_trace_says_nothing_about_another_size() -> None:
    with pytest.raises(MeasurementError, match="trace size 8 itself"):
        predict_cuda_memory([trace(2)], 8)


def test_a_trace_without_storages_is_refused() -> None:
    with pytest.raises(MeasurementError, match="names no storages"):
        predict_cuda_memory([trace(2, names=False)], 2)


def test_no_examples_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="micro_batch_size 0"):
        predict_cuda_memory([trace(2)], 0)


def test_a_step_that_exceeds_the_capacity_does_not_fit() -> None:
    options = AllocatorOptions(capacity_bytes=60 * MIB)
    assert not predict_cuda_memory([trace(8)], 8, options=options).fits
    assert predict_cuda_memory([trace(1)], 1, options=options).fits


def test_the_largest_batch_is_the_last_that_fits() -> None:
    traces, memory = [trace(2), trace(3)], 2**30
    found = largest_micro_batch(traces, memory)
    options = AllocatorOptions(capacity_bytes=memory - CONTEXT_BYTES[1])
    assert found.fits
    above = predict_cuda_memory(traces, found.micro_batch_size + 1, options=options)
    assert not above.fits
    assert found.micro_batch_size > 10


def test_a_device_too_small_for_one_example_is_refused() -> None:
    with pytest.raises(
        InfeasibleError, match=r"one example needs .* does not fit into .*; need [\d,]+ bytes more"
    ):
        largest_micro_batch([trace(2), trace(3)], CONTEXT_BYTES[1] + 10 * MIB)


def test_a_storage_that_grows_exists_twice_for_a_moment() -> None:
    result = replay([Change(0, 4 * MIB), Change(0, 2 * MIB), Change(0, -6 * MIB)])
    assert result.requested_bytes == 10 * MIB
    assert len(result.addresses) == 2
