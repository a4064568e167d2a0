from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rightbatch.core.errors import InfeasibleError, InvalidInputError, MeasurementError
from rightbatch.core.samples import MemoryTrace, Owner, Phase
from rightbatch.fit.memory_model import fit_memory_model

OWNERS: tuple[Owner, ...] = ("temporaries", "activations", "inputs", "parameters")
PHASES: tuple[Phase, ...] = ("setup", "forward", "backward", "optimizer")


def trace(
    size: int,
    deltas: Sequence[int],
    *,
    owner: Sequence[int] | None = None,
    phase: Sequence[int] | None = None,
    source: str = "kernels",
    operators: Sequence[str] | None = None,
    caveats: Sequence[str] = (),
) -> MemoryTrace:
    n = len(deltas)
    names = operators or [f"op{i}" for i in range(n)]
    return MemoryTrace(
        micro_batch_size=size,
        source=source,
        delta_bytes=tuple(deltas),
        operator=tuple(range(n)),
        phase=tuple(phase or [1] * n),
        owner=tuple(owner or [0] * n),
        operators=tuple(names),
        phases=PHASES,
        owners=OWNERS,
        caveats=tuple(caveats),
    )


def step(size: int, **options: object) -> MemoryTrace:
    """1000 bytes of weights; activations of 10 b; an optimizer that needs 500."""
    deltas = [1000, 8 * size, 10 * size, -10 * size, 500, -500]
    return trace(size, deltas, owner=[3, 2, 1, 1, 0, 0], phase=[0, 0, 1, 2, 3, 3], **options)  # type: ignore[arg-type]


def test_the_peak_moves_from_the_optimizer_to_forward_at_the_crossing() -> None:
    model = fit_memory_model([step(b) for b in (1, 2, 3, 16)])
    assert [model.peak_bytes(b) for b in (1, 50, 51, 1000)] == [1508, 1900, 1918, 19000]
    assert model.pieces() == ((1, "optimizer", "op4"), (50, "forward", "op2"))
    assert model.peak_at(49) == ("optimizer", "op4")
    assert model.exact
    assert model.residual_bytes == 0
    assert model.low_bytes(70) == model.peak_bytes(70) == model.high_bytes(70)
    assert model.evidence == "measured"


def test_the_breakdown_is_what_lives_at_the_peak() -> None:
    model = fit_memory_model([step(b) for b in (2, 3, 16)])
    assert model.breakdown(10) == {
        "temporaries": 500,
        "activations": 0,
        "inputs": 80,
        "parameters": 1000,
    }
    assert model.breakdown(100) == {
        "temporaries": 0,
        "activations": 1000,
        "inputs": 800,
        "parameters": 1000,
    }


def test_an_array_of_sizes_gives_the_same_peaks() -> None:
    model = fit_memory_model([step(b) for b in (2, 3, 16)])
    sizes = np.array([[1, 5], [49, 50], [51, 10**6]])
    assert (
        model.predict_peak_bytes(sizes) == [[model.peak_bytes(int(b)) for b in r] for r in sizes]
    ).all()
    assert model.predict_peak_bytes(np.array([], dtype=np.int64)).size == 0


def test_a_loss_over_pairs_is_met_by_a_parabola() -> None:
    def pairs(b: int) -> MemoryTrace:
        return trace(b, [5000, 8 * b, 4 * b * b, -4 * b * b], owner=[3, 2, 1, 1])

    model = fit_memory_model([pairs(b) for b in (1, 2, 3, 4, 16)])
    assert model.peak_bytes(1000) == 5000 + 8000 + 4_000_000
    assert model.exact
    assert (
        fit_memory_model([pairs(2), pairs(3)]).peak_bytes(1000) < 100_000
    )  # what two sizes cannot tell


def test_the_largest_micro_batch_just_fits_and_headroom_shrinks_it() -> None:
    model = fit_memory_model([step(b) for b in (2, 3, 16)])
    assert model.max_micro_batch(19_000) == 1000
    assert model.max_micro_batch(18_999) == 999
    assert model.max_micro_batch(20_000, headroom=0.05) == 1000


def test_a_limit_below_one_example_says_how_many_bytes_are_missing() -> None:
    model = fit_memory_model([step(b) for b in (1, 2, 3, 16)])
    with pytest.raises(InfeasibleError, match=r"needs 1,508 bytes.*need 508 bytes more.\n.*parameters"):
        model.max_micro_batch(1000)


def test_a_headroom_that_is_no_share_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"headroom = 10"):
        fit_memory_model([step(2), step(3)]).max_micro_batch(10_000, headroom=10)


@pytest.mark.parametrize("size", [0, -3, 2**30])
def test_sizes_outside_the_law_are_refused(size: int) -> None:
    model = fit_memory_model([step(2), step(3)])
    with pytest.raises(InvalidInputError, match="need a size from 1 to"):
        model.peak_bytes(size)
    with pytest.raises(InvalidInputError, match="need a size from 1 to"):
        model.predict_peak_bytes(np.array([5, size]))


def test_one_size_is_not_a_law() -> None:
    with pytest.raises(
        MeasurementError, match=r"1 fake and 1 real memory trace.*two sizes of one kind"
    ):
        fit_memory_model([step(2), step(3, source="fake")])


def test_fake_traces_alone_are_derived_and_convolutions_widen_the_interval_upwards() -> None:
    plain = fit_memory_model([step(b, source="fake") for b in (2, 3)])
    assert plain.evidence == "derived"
    assert plain.low_bytes(9000) == plain.peak_bytes(9000) < plain.high_bytes(9000)
    assert plain.high_bytes(9000) == pytest.approx(plain.peak_bytes(9000), rel=1.1e-3)
    names = ["a", "b", "aten.convolution_backward", "d", "e", "f"]
    model = fit_memory_model([step(b, source="fake", operators=names) for b in (2, 3)])
    assert model.low_bytes(9) == model.peak_bytes(9) < model.high_bytes(9)
    assert any("scratch inside convolution kernels" in text for text in model.caveats)


def test_fake_traces_alone_take_everything_that_is_selected_by_value_for_the_most() -> None:
    names = ["a", "b", "aten.nonzero", "d", "e", "f"]
    model = fit_memory_model([step(b, source="fake", operators=names) for b in (2, 3)])
    assert model.low_bytes(9000) == 0


def test_real_streams_outrank_fake_ones() -> None:
    fakes = [trace(b, [1, b, -b], source="fake") for b in (2, 3, 64)]
    assert fit_memory_model([*fakes, *(step(b) for b in (2, 3, 16))]).peak_bytes(1000) == 19_000


def test_larger_batches_that_take_other_kernels_get_their_own_law() -> None:
    def small(b: int) -> MemoryTrace:
        return trace(b, [1000, 8 * b], owner=[3, 2])

    def large(b: int) -> MemoryTrace:
        return trace(b, [1000, 8 * b, 300, -300], owner=[3, 2, 0, 0])

    model = fit_memory_model([small(2), small(3), large(16), large(17)])
    assert [model.peak_bytes(b) for b in (3, 8, 16, 100)] == [1024, 1364, 1428, 2100]
    assert (model.low_bytes(8), model.high_bytes(8)) == (1064, 1364)
    assert not model.exact
    sizes = np.arange(1, 40)
    assert (model.predict_peak_bytes(sizes) == [model.peak_bytes(int(b)) for b in sizes]).all()


def test_streams_that_never_align_give_a_line_an_interval_and_a_caveat() -> None:
    peaks = {2: 1210, 3: 1290, 16: 2650, 17: 2660}
    traces = [trace(b, [1000, p - 1000, *[0] * i]) for i, (b, p) in enumerate(peaks.items())]
    model = fit_memory_model(traces)
    assert model.residual_bytes > 0
    assert all(model.low_bytes(b) <= p <= model.high_bytes(b) for b, p in peaks.items())
    assert any("do not follow one law" in text for text in model.caveats)
    assert sum(model.breakdown(9).values()) == model.peak_bytes(9)


def test_rounding_to_pages_inside_a_library_widens_the_interval_a_little() -> None:
    def paged(b: int) -> MemoryTrace:
        return trace(b, [100_000, -(-46_000 * b // 4096) * 4096])

    model = fit_memory_model([paged(b) for b in (2, 3, 16, 17)])
    for b in (5, 32, 200):
        truth = 100_000 - (-46_000 * b // 4096) * 4096
        assert model.low_bytes(b) <= truth <= model.high_bytes(b)
        assert abs(model.peak_bytes(b) / truth - 1) < 0.01


def test_what_depends_on_data_is_bounded_by_its_worst_case() -> None:
    fakes = [trace(b, [1000, 8 * b, 40 * b], source="fake", caveats=["assumed all"]) for b in (2, 3)]
    model = fit_memory_model([*fakes, *(trace(b, [1000, 8 * b, 10 * b]) for b in (2, 3, 16))])
    assert model.peak_bytes(100) == 2800
    assert model.high_bytes(100) == 5800
    assert model.low_bytes(100) == model.peak_bytes(2) == 1036  # no choice takes less
    assert "assumed all" in model.caveats


def test_real_steps_of_tiny_batches_alone_are_doubted() -> None:
    model = fit_memory_model([step(2), step(3)])
    assert model.high_bytes(500) > 1.1 * model.peak_bytes(500)
    assert any("no real step of 16 examples" in text for text in model.caveats)


def test_a_collate_that_ignores_its_examples_is_noticed() -> None:
    model = fit_memory_model([trace(b, [1000, 64, 10 * b], owner=[3, 2, 1]) for b in (2, 3, 16)])
    assert any("does collate ignore examples" in text for text in model.caveats)


def test_size_1_untraced_may_err_by_a_second_example() -> None:
    model = fit_memory_model([step(b) for b in (2, 3, 16)])
    assert model.valid_range[0] == 2
    assert any("micro-batch of 1" in text for text in model.caveats)
    assert (model.low_bytes(1), model.peak_bytes(1), model.high_bytes(1)) == (1500, 1508, 1516)
    assert not model.exact
    with pytest.raises(InfeasibleError, match=r"needs 1,516"):
        model.max_micro_batch(1515)


@pytest.mark.parametrize("scratch", [-9, 5, 700])
def test_a_lone_example_with_kernels_of_its_own_changes_no_other_size(scratch: int) -> None:
    lone = trace(1, [1000, 8, 1000 + scratch, -1000 - scratch], owner=[3, 2, 0, 0])
    law, model = (fit_memory_model([*first, *map(step, (2, 3, 16))]) for first in ([step(1)], [lone]))
    assert model.low_bytes(1) == model.peak_bytes(1) == model.high_bytes(1) == 2008 + scratch
    assert model.breakdown(1)["temporaries"] == 1000 + scratch
    assert model.pieces()[:2] == ((1, "forward", "op2"), (2, "optimizer", "op4"))
    sizes = np.arange(2, 100)
    assert (model.predict_peak_bytes(sizes) == law.predict_peak_bytes(sizes)).all()
    assert model.exact
    assert not model.caveats
    assert model.max_micro_batch(2008 + scratch) >= 1
    assert law.valid_range == model.valid_range


def test_rounding_at_three_sizes_is_no_parabola() -> None:
    """A recurrent kernel's workspace comes in pages; extrapolated as a square it would run away."""

    def paged(b: int) -> MemoryTrace:
        return trace(b, [100_000, -(-46_000 * b // 4096) * 4096])

    fakes = [trace(b, [100_000, 46_000 * b], source="fake") for b in (2, 3, 64)]
    for known in (fakes, []):
        model = fit_memory_model([*known, *(paged(b) for b in (2, 3, 16))])
        truth = 100_000 - (-46_000 * 5000 // 4096) * 4096
        assert model.peak_bytes(5000) == pytest.approx(truth, rel=0.005)
        assert not model.exact
        assert model.low_bytes(5000) <= truth <= model.high_bytes(5000)


def test_three_real_sizes_are_a_parabola_where_the_shapes_are() -> None:
    def pairs(b: int, source: str) -> MemoryTrace:
        return trace(b, [5000, 8 * b, 4 * b * b, -4 * b * b], owner=[3, 2, 1, 1], source=source)

    fakes = [pairs(b, "fake") for b in (2, 3, 64, 4)]
    model = fit_memory_model([*fakes, *(pairs(b, "kernels") for b in (2, 3, 4))])
    assert model.peak_bytes(1000) == 5000 + 8000 + 4_000_000


def test_routing_that_differs_from_size_to_size_does_not_run_away() -> None:
    """Rows of an expert: 16, 17 and 64 examples send it 5, 4 and 20, which no square explains."""
    rows = {16: 5, 17: 4, 64: 20}
    fakes = [trace(b, [1000, 80 * b], source="fake", caveats=["assumed all"]) for b in (2, 3, 64)]
    model = fit_memory_model([*fakes, *(trace(b, [1000, 80 * r]) for b, r in rows.items())])
    assert model.low_bytes(8192) <= 1000 + 80 * 2600 <= model.high_bytes(8192)
    assert model.peak_bytes(8192) == pytest.approx(1000 + 80 * 2600, rel=0.05)
