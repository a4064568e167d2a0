"""Whatever was measured, a plan keeps what it promises."""

import dataclasses
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

import known
from rightbatch.core.errors import InfeasibleError, RightBatchError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import updates_of
from rightbatch.plan.limits import Limits
from rightbatch.plan.planner import make_plan

SECONDS = st.floats(1e-6, 1e-1)
LAWS = st.builds(
    known.Laws,
    step_seconds=st.tuples(SECONDS, SECONDS),
    optimizer_seconds=SECONDS,
    load_seconds=st.tuples(SECONDS, SECONDS),
    num_workers=st.sampled_from([0, 2]),
    bytes=st.tuples(st.integers(1_000, 2**28), st.integers(16, 2**20)),
    noise_scale=st.floats(0.01, 1e6),
    sizes=st.sampled_from([known.SIZES, (4, 16, 64), (1, 32)]),
)
LIMITS = st.builds(
    Limits,
    memory_limit_bytes=st.none() | st.integers(2**20, 2**30),
    headroom=st.floats(0, 0.5),
    max_batch_size=st.none() | st.integers(1, 5000),
    num_replicas=st.sampled_from([1, 1, 3, 8]),
    min_updates=st.none() | st.integers(1, 5000),
)
OBJECTIVES = st.sampled_from(["time", "balanced", "compute", "accuracy"])
FAMILIES = st.sampled_from(["sgd", "adam", "other"])


def planned(
    laws: known.Laws, limits: Limits, objective: Any, num_train_examples: int, family: str = "sgd"
) -> Plan:
    classes = {"sgd": "SGD", "adam": "AdamW", "other": "Muon"}
    facts = known.facts(
        num_train_examples=num_train_examples, optimizer_family=family, optimizer_class=classes[family]
    )
    return make_plan(facts, known.measurements(laws, task=facts), objective, limits)


@settings(deadline=None, max_examples=40)
@given(
    laws=LAWS,
    limits=LIMITS,
    objective=OBJECTIVES,
    family=FAMILIES,
    num_train_examples=st.integers(32, 20_000),
)
def test_every_plan_is_within_its_limits_and_better_founded_than_any_other_candidate(
    laws: known.Laws, limits: Limits, objective: str, family: str, num_train_examples: int
) -> None:
    memory = limits.memory_limit_bytes or known.environment().memory_bytes
    usable = memory * (1 - limits.headroom)
    largest = min(num_train_examples, limits.max_batch_size or num_train_examples)
    try:
        plan = planned(laws, limits, objective, num_train_examples, family)
    except InfeasibleError:
        return
    assert plan.plateau is not None
    assert plan.plateau[0] <= plan.global_batch_size <= plan.plateau[1]
    for candidate in plan.candidates:
        assert candidate.peak_bytes <= usable
        assert candidate.global_batch_size <= largest
        parts = candidate.micro_batch_size * candidate.accumulation_steps * candidate.num_replicas
        assert parts == candidate.global_batch_size
        assert candidate.num_replicas <= limits.num_replicas
        assert laws.sizes[0] <= candidate.micro_batch_size <= laws.sizes[-1]
        assert candidate.update_seconds > 0
        assert 0 <= (candidate.seconds_ratio.low or 0) <= candidate.seconds_ratio.value
        assert candidate.regret >= -1e-12
        if limits.min_updates:
            total, batch = 10 * num_train_examples, candidate.global_batch_size
            assert updates_of(total, batch, num_train_examples) >= limits.min_updates
    chosen = next(c for c in plan.candidates if c.global_batch_size == plan.global_batch_size)
    if plan.global_batch_size != 32 and objective in {"time", "balanced"}:  # today's is kept if as good
        assert chosen.regret == min(c.regret for c in plan.candidates)
    assert any(c.on_front for c in plan.candidates)
    assert plan.learning_rate > 0
    assert 0 <= plan.warmup_start <= 1
    assert plan.warmup_examples <= plan.total_examples(plan.global_batch_size, num_train_examples)
    assert all(0 <= doubt.share <= 1 for doubt in plan.doubts)
    assert planned(laws, limits, objective, num_train_examples, family) == plan


def best_seconds(plan: Plan) -> float:
    return min(c.seconds_ratio.value for c in plan.candidates)


@settings(deadline=None, max_examples=15)
@given(laws=LAWS, small=st.integers(2**20, 2**29), factor=st.floats(1, 8), replicas=st.integers(1, 8))
def test_more_memory_and_more_devices_never_make_the_quickest_batch_slower(
    laws: known.Laws, small: int, factor: float, replicas: int
) -> None:
    try:
        tight = planned(laws, Limits(memory_limit_bytes=small), "time", 5000)
    except InfeasibleError:
        assume(False)
        raise
    more = planned(laws, Limits(memory_limit_bytes=int(small * factor)), "time", 5000)
    assert {c.global_batch_size for c in tight.candidates} <= {
        c.global_batch_size for c in more.candidates
    }
    assert best_seconds(more) <= best_seconds(tight) * (1 + 1e-9)
    wide = planned(laws, Limits(memory_limit_bytes=small, num_replicas=replicas), "time", 5000)
    assert best_seconds(wide) <= best_seconds(tight) * (1 + 1e-9)


@settings(deadline=None, max_examples=15)
@given(laws=LAWS, factor=st.floats(1.5, 100))
def test_a_noisier_gradient_never_asks_for_a_smaller_batch(laws: known.Laws, factor: float) -> None:
    noisier = dataclasses.replace(laws, noise_scale=laws.noise_scale * factor)

    def best(of: known.Laws) -> int:
        try:
            plan = planned(of, Limits(), "time", 5000)
        except RightBatchError:
            assume(False)
            raise
        return min(
            plan.candidates, key=lambda c: c.seconds_ratio.value / _today(plan)
        ).global_batch_size

    assert best(noisier) >= best(laws)


def _today(plan: Plan) -> float:
    return next(c.seconds_ratio.value for c in plan.candidates if c.global_batch_size == 32)


@settings(deadline=None, max_examples=15)
@given(laws=LAWS, slowdown=st.floats(1.0, 3.0), more=st.floats(1.0, 3.0))
def test_a_larger_slowdown_never_gives_a_larger_batch(
    laws: known.Laws, slowdown: float, more: float
) -> None:
    try:
        batches = [
            planned(laws, Limits(slowdown=s), "accuracy", 5000).global_batch_size
            for s in (slowdown, slowdown * more)
        ]
    except InfeasibleError:
        assume(False)
        raise
    assert batches[1] <= batches[0]
