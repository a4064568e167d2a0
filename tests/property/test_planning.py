"""Whatever was measured, a plan keeps what it promises."""

from hypothesis import given, settings
from hypothesis import strategies as st

import known
from rightbatch.core.errors import InfeasibleError
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
)
LIMITS = st.builds(
    Limits,
    memory_limit_bytes=st.none() | st.integers(2**20, 2**30),
    headroom=st.floats(0, 0.5),
    max_batch_size=st.none() | st.integers(1, 5000),
)


@settings(deadline=None, max_examples=60)
@given(
    laws=LAWS,
    limits=LIMITS,
    objective=st.sampled_from(["time", "balanced"]),
    family=st.sampled_from(["sgd", "adam", "other"]),
    num_train_examples=st.integers(32, 20_000),
)
def test_every_plan_is_within_its_limits_and_better_founded_than_any_other_candidate(
    laws: known.Laws, limits: Limits, objective: str, family: str, num_train_examples: int
) -> None:
    facts = known.facts(num_train_examples=num_train_examples, optimizer_family=family)
    measured = known.measurements(laws, task=facts)
    limit = limits.memory_limit_bytes or measured.environment.memory_bytes
    usable = limit * (1 - limits.headroom)
    try:
        plan = make_plan(facts, measured, objective, limits)  # type: ignore[arg-type]
    except InfeasibleError:
        assert sum(laws.bytes) > usable * (1 - 1e-9)
        return
    assert plan.plateau is not None
    assert plan.plateau[0] <= plan.global_batch_size <= plan.plateau[1]
    for candidate in plan.candidates:
        assert candidate.peak_bytes <= usable
        assert candidate.global_batch_size <= min(
            num_train_examples, limits.max_batch_size or num_train_examples
        )
        assert candidate.micro_batch_size * candidate.accumulation_steps == candidate.global_batch_size
        assert candidate.update_seconds > 0
        assert 0 <= (candidate.seconds_ratio.low or 0) <= candidate.seconds_ratio.value
        assert candidate.regret >= 0
    chosen = next(c for c in plan.candidates if c.global_batch_size == plan.global_batch_size)
    if plan.global_batch_size != facts.recipe.batch_size:  # today's is kept where it is as good
        assert chosen.regret == min(c.regret for c in plan.candidates)
    assert plan.learning_rate > 0
    assert 0 <= plan.warmup_start <= 1
    assert plan.warmup_examples <= plan.total_examples(plan.global_batch_size, num_train_examples)
    assert make_plan(facts, measured, objective, limits) == plan  # type: ignore[arg-type]
