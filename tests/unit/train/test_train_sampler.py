"""Windows cover every example exactly once an epoch, in an order that only seed and epoch decide."""

from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import LoaderOptions, Recipe
from rightbatch.train.sampler import MicroBatches, Windows, split_evenly, train_loader, valid_loader

RECIPE = Recipe(lr=0.1, batch_size=8, epochs=2)


def windows(num: int = 20, seed: int = 0, max_updates: int | None = None, **changes: object) -> Windows:
    return Windows.of(Plan.from_recipe(RECIPE, **changes), num, seed, max_updates)


@settings(deadline=None)
@given(num=st.integers(1, 60), batch=st.integers(1, 60), pieces=st.integers(1, 8))
def test_an_epoch_holds_every_example_once(num: int, batch: int, pieces: int) -> None:
    micro = -(-batch // pieces)
    plan = {"global_batch_size": micro * pieces, "micro_batch_size": micro}
    run = windows(num, **plan, accumulation_steps=pieces)
    batches = list(MicroBatches(run))
    assert Counter(chain(*batches)) == dict.fromkeys(range(num), 2)
    assert sum(w.num_examples for w in run) == run.total_examples == 2 * num
    assert all(w.num_examples <= micro * pieces and len(w.micro_batch_sizes) <= pieces for w in run)
    assert [len(b) for b in batches] == list(chain(*(w.micro_batch_sizes for w in run)))
    assert sum(w.ends_epoch for w in run) == 2


@settings(deadline=None)
@given(num=st.integers(1, 500), micro=st.integers(1, 100))
def test_a_window_is_split_into_the_fewest_and_most_even_pieces(num: int, micro: int) -> None:
    sizes = split_evenly(num, micro)
    assert sum(sizes) == num
    assert max(sizes) <= micro
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-num // micro)


def test_no_window_is_left_with_a_lone_example_for_micro_batches_of_three_or_more() -> None:
    assert all(min(split_evenly(n, m)) > 1 for n in range(2, 200) for m in range(3, 50))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    orders = {
        (seed, epoch): tuple(windows(seed=seed).order(epoch)) for seed in (0, 1) for epoch in (0, 1)
    }
    again = {key: tuple(windows(seed=key[0]).order(key[1])) for key in orders}
    assert orders == again
    assert len(set(orders.values())) == 4


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    small = windows(global_batch_size=4, micro_batch_size=2, accumulation_steps=2)
    expected = [*small.order(0), *small.order(1)]
    assert list(chain(*MicroBatches(small))) == list(chain(*MicroBatches(windows()))) == expected


def test_sequential_is_in_order_and_replacement_repeats() -> None:
    assert list(windows(sampler="sequential").order(3)) == list(range(20))
    drawn = windows(1000, sampler="replacement").order(0)
    # Of n draws with replacement n (1 - 1/e) = 632 are distinct, with a standard deviation of 10.
    assert 590 < len(set(drawn.tolist())) < 675
    assert set(drawn.tolist()) <= set(range(1000))


def test_steps_end_mid_epoch_after_exactly_that_many_updates() -> None:
    run = windows(epochs=None, steps=4)  # 8 + 8 + 4, then 8
    assert [w.num_examples for w in run] == [8, 8, 4, 8]
    assert [(w.epoch, w.ends_epoch) for w in run] == [(0, False), (0, False), (0, True), (1, True)]


def test_part_of_an_epoch_ends_after_exactly_that_many_examples() -> None:
    assert [w.num_examples for w in windows(epochs=0.5)] == [8, 2]


@pytest.mark.parametrize(("max_updates", "examples"), [(1, 8), (3, 20), (4, 28), (99, 40)])
def test_max_updates_keeps_the_first_updates_only(max_updates: int, examples: int) -> None:
    assert windows(max_updates=max_updates).last_example == examples
    assert list(windows(max_updates=max_updates))[:-1] == list(windows())[: min(max_updates, 6) - 1]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
def test_every_number_of_workers_reads_the_same_batches_in_the_same_order() -> None:
    run = windows(tiny.NUM_EXAMPLES, global_batch_size=10, micro_batch_size=5, accumulation_steps=2)
    read = {}
    for workers in (0, 1, 3):
        options = LoaderOptions(num_workers=workers, prefetch_factor=2 if workers else None)
        loader = train_loader(tiny.task(loader=options), run, "cpu")
        read[workers] = [x for x, _ in loader]
    torch.testing.assert_close(read[1], read[0], rtol=0, atol=0)
    torch.testing.assert_close(read[3], read[0], rtol=0, atol=0)


def test_loading_leaves_the_models_random_numbers_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    task, run = tiny.task(), windows(tiny.NUM_EXAMPLES)
    validation = valid_loader(task, run, "cpu")
    assert validation is not None
    assert sum(len(x) for x, _ in validation) == 16
    assert len(list(train_loader(task, run, "cpu"))) == 12
    assert torch.equal(torch.get_rng_state(), state)
