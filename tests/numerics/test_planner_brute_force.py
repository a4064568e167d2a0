"""Scores against plain Python: one draw and one candidate at a time, straight from the formulas."""

import math
from typing import Any

import numpy as np
import pytest

import known
from rightbatch.core.plan import Objective
from rightbatch.fit.models import fit_models
from rightbatch.plan.candidates import Candidates, Split, enumerate_candidates
from rightbatch.plan.draws import Draws
from rightbatch.plan.fitted import Fitted, fit_all
from rightbatch.plan.limits import Limits
from rightbatch.plan.score import on_front, score

LIMITS = Limits(num_replicas=4)


def noisy(num_workers: int) -> Fitted:
    """Models in which every source is uncertain."""
    laws = known.Laws(load_seconds=(2e-4, 4e-5), num_workers=num_workers, sizes=(1, 4, 16, 64))
    measured = known.measurements(laws)
    rng = np.random.default_rng(1)

    def shaken(seconds: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(
            s * float(np.exp(0.1 * z)) for s, z in zip(seconds, rng.standard_normal(9), strict=False)
        )

    measured = measured.replace(
        step_timings=tuple(t.replace(seconds=shaken(t.seconds)) for t in measured.step_timings),
        loader_timings=tuple(t.replace(seconds=shaken(t.seconds)) for t in measured.loader_timings),
        optimizer_seconds=shaken((1e-3,) * 5),
        task=known.facts(num_trainable_parameters=10**6),
    )
    return fit_all(measured, fit_models(measured), LIMITS)


def seconds_by_hand(split: Split, models: Fitted, draws: Draws, i: int) -> float:
    speed, loader = models.modes[0].speed, models.loader
    sizes = speed.micro_batch_sizes
    nodes = [s * draws.step_factors[0][j, i] for j, s in enumerate(speed.seconds)]
    right = next(j for j, size in enumerate(sizes) if size >= split.micro_batch_size)
    step = nodes[right]
    if sizes[right] != split.micro_batch_size:
        share = (split.micro_batch_size - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
        step = (1 - share) * nodes[right - 1] + share * nodes[right]
    r = split.num_replicas
    sync = 2 * (r - 1) / r * models.link.num_bytes / (models.link.bytes_per_second * draws.bandwidth[i])
    work = split.accumulation_steps * step + speed.optimizer_seconds * draws.optimizer[i] + sync
    load = loader.batch_seconds + loader.example_seconds * split.micro_batch_size
    load *= split.accumulation_steps * draws.loader[i]
    return max(work, load) if loader.overlaps else work + load


def cost_by_hand(objective: Objective, seconds: float, examples: float) -> float:
    return {"time": seconds, "compute": examples, "balanced": math.sqrt(seconds * examples)}[objective]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("objective", ["time", "balanced", "compute"])
def test_scores_are_what_the_formulas_give_one_at_a_time(objective: Any, num_workers: int) -> None:
    models = noisy(num_workers)
    candidates = enumerate_candidates(models.modes, largest_global=64, today=32, num_replicas=4)
    today = Split(micro_batch_size=32, accumulation_steps=1)
    result = score(candidates, Candidates.of([today]), models.update_seconds, models.draws, objective)
    found = [candidates.split(i) for i in range(len(candidates))]
    for i in (0, 7, 999):
        critical = models.draws.critical[i]
        base = (1 + critical / 32) * seconds_by_hand(today, models, models.draws, i)
        seconds, examples = {}, {}
        for split in found:
            batch = split.global_batch_size
            updates = 1 + critical / batch
            seconds[split] = updates * seconds_by_hand(split, models, models.draws, i) / base
            examples[split] = updates * batch / ((1 + critical / 32) * 32)
        for row in range(len(result.candidates)):
            split = result.candidates.split(row)
            assert result.seconds[row, i] == pytest.approx(seconds[split], rel=1e-12)
            assert result.examples[row, i] == pytest.approx(examples[split], rel=1e-12)
            cost = cost_by_hand(objective, seconds[split], examples[split])
            assert result.cost[row, i] == pytest.approx(cost, rel=1e-12)
        least = min(cost_by_hand(objective, seconds[s], examples[s]) for s in found)
        assert result.least_cost[i] == pytest.approx(least, rel=1e-12)


def test_the_chosen_splits_have_the_least_mean_seconds() -> None:
    models = noisy(0)
    candidates = enumerate_candidates(models.modes, largest_global=64, today=32, num_replicas=4)
    today = Candidates.of([Split(micro_batch_size=32, accumulation_steps=1)])
    result = score(candidates, today, models.update_seconds, models.draws, "time")
    means = models.update_seconds(candidates, models.draws).mean(axis=1)
    for row, batch in enumerate(result.candidates.global_batch_size):
        mine = np.flatnonzero(candidates.global_batch_size == batch)
        assert result.candidates.split(row) == candidates.split(int(mine[np.argmin(means[mine])]))


def test_the_front_is_what_no_other_candidate_beats_in_both() -> None:
    rng = np.random.default_rng(2)
    seconds, examples = rng.integers(1, 9, (2, 40)).astype(float)
    for i, on in enumerate(on_front(seconds, examples)):
        beaten = [
            seconds[j] <= seconds[i]
            and examples[j] <= examples[i]
            and (seconds[j] < seconds[i] or examples[j] < examples[i])
            for j in range(40)
        ]
        assert on == (not any(beaten))
