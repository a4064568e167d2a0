from __future__ import annotations

import numpy as np

from rightbatch.core.samples import Phase
from rightbatch.measure.memory.stream import Event, Stream, accumulate_in_place, order_deaths, to_trace


def event(storage: int, delta: int, phase: Phase = "backward") -> Event:
    return Event(storage, delta, "aten.add", phase)


def test_a_sum_whose_old_part_dies_at_once_becomes_in_place() -> None:
    events = [event(0, 8), event(1, 8), event(2, 8), event(0, -8), event(1, -8), event(2, -8)]
    kept, became = accumulate_in_place(events, {2: 0})
    assert [(e.storage, e.delta_bytes) for e in kept] == [(0, 8), (1, 8), (1, -8), (0, -8)]
    assert became == {2: 0}


def test_a_sum_whose_old_part_lives_on_stays_out_of_place() -> None:
    events = [event(0, 8), event(1, 8), event(2, 8), event(0, -8)]
    kept, became = accumulate_in_place(events, {1: 0})
    assert kept == events
    assert became == {}


def test_a_chain_of_sums_ends_in_the_first_storage() -> None:
    events = [event(0, 8), event(1, 8), event(0, -8), event(2, 8), event(1, -8), event(2, -8)]
    kept, became = accumulate_in_place(events, {1: 0, 2: 1})
    assert [(e.storage, e.delta_bytes) for e in kept] == [(0, 8), (0, -8)]
    assert became == {1: 0, 2: 0}


def test_storages_that_die_together_are_listed_by_birth_within_their_phase() -> None:
    events = [
        event(0, 1),
        event(1, 2),
        event(2, 3),
        event(2, -3),
        event(0, -1),
        event(1, -2, "optimizer"),
    ]
    assert [e.storage for e in order_deaths(events)] == [0, 1, 2, 0, 2, 1]


def test_the_strongest_claim_stays_whatever_the_order() -> None:
    stream = Stream()
    storage = stream.born(4, "aten.empty")
    stream.claim(storage, "optimizer_state")
    stream.claim(storage, "gradients")
    assert stream.owners[storage] == "optimizer_state"


def test_only_what_forward_leaves_alive_is_an_activation() -> None:
    stream = Stream()
    before = stream.born(1, "setup")
    stream.phase = "forward"
    dead, alive = stream.born(2, "aten.mm"), stream.born(4, "aten.relu")
    stream.died(dead)
    stream.claim_activations()
    assert stream.owners == {alive: "activations"}
    assert before in stream.live_bytes


def test_a_resized_storage_dies_with_the_size_it_has() -> None:
    stream = Stream()
    storage = stream.born(4, "aten.empty")
    stream.resized(storage, 10)
    stream.resized(storage, 10)
    stream.died(storage)
    assert [e.delta_bytes for e in stream.events] == [4, 6, -10]


def test_the_record_keeps_every_column() -> None:
    events = [event(0, 8, "setup"), event(1, 4), event(1, -4)]
    trace = to_trace(events, {0: "parameters"}, micro_batch_size=2, source="fake", caveats=["c"])
    assert np.cumsum(trace.delta_bytes).tolist() == [8, 12, 8]
    assert [trace.owners[i] for i in trace.owner] == ["parameters", "temporaries", "temporaries"]
    assert [trace.phases[i] for i in trace.phase] == ["setup", "backward", "backward"]
    assert trace.operators == ("aten.add",)
    assert trace.caveats == ("c",)
