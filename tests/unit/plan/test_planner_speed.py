"""Planning stays quick enough to be done while somebody waits."""

import time

import known
from rightbatch.fit.models import fit_models
from rightbatch.plan.candidates import Candidates, Split, enumerate_candidates
from rightbatch.plan.fitted import fit_all
from rightbatch.plan.limits import Limits
from rightbatch.plan.score import score


def test_ten_thousand_candidates_under_a_thousand_draws_take_seconds_at_most() -> None:
    measured = known.measurements()
    fitted = fit_all(measured, fit_models(measured), Limits(num_replicas=8))
    found = enumerate_candidates(
        fitted.modes, largest_global=10**10, today=32, num_replicas=2**17
    ).take(slice(10_000))
    assert len(found) == 10_000
    today = Candidates.of([Split(micro_batch_size=32, accumulation_steps=1)])
    start = time.process_time()
    score(found, today, fitted.update_seconds, fitted.draws, "balanced")
    assert time.process_time() - start < 3.0  # 0.3 s on one core that is free
