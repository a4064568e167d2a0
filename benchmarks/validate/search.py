"""Does a sampler find a better rate for a batch, or with fewer runs, than walking over doublings?

Runs at 25 rates a third of a doubling apart, from 1/8 to 32 times the rule's, with four seeds, make a
table of updates to the target (``--table FILE`` keeps it and goes on with it); a run is given up after
four times the updates of the best. Searches then look runs up in it, which costs nothing, and are
repeated 200 times with seeds of their own: the sweep's walk over doublings with one training seed
and, as the sweep does, its rates repeated with two more; and Optuna's samplers with as many runs, which
begin with the rule's rate and may choose among all rates of the table. What each chose is judged by the
updates expected there: the geometric mean over all seeds and the two neighbouring rates.

    python benchmarks/validate/search.py --peers SITE_PACKAGES [--table search.json] [digits ...]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import save
from rightbatch.tasks.check import check_task
from rightbatch.tasks.load import load_task
from rightbatch.validate.sweep import HOPELESS, ArmJob, SweepStudy, _first_seed, _train_arm
from rightbatch.validate.work import Board

SIZES, SEEDS, STEPS_PER_DOUBLING = (8, 64, 512), 4, 3
PLACES = range(-3 * STEPS_PER_DOUBLING, 5 * STEPS_PER_DOUBLING + 1)
GIVEN_UP = 4.0
REPEATS = 200
Table = dict[str, float]  # "batch place seed" to updates; infinite where the target was missed
Look = Callable[[int], float]  # place to updates


def make_table(name: str, path: Path) -> Table:
    """Train what is not in the file yet."""
    table: Table = json.loads(path.read_text()) if path.exists() else {}
    task = load_task(name)
    assert task.target is not None
    facts = check_task(task)
    whole = facts.recipe.total_examples(facts.recipe.batch_size, facts.num_train_examples)
    study = SweepStudy(
        task=task,
        facts=facts,
        target=task.target,
        batch_sizes=SIZES,
        rates=3,
        seeds=1,
        most_examples=2 * whole,
        device="cpu",
        folder=Path(),
    )
    for size in SIZES:
        for seed in range(SEEDS):
            shortest = math.inf
            for place in sorted(PLACES, key=lambda place: abs(place - PLACES[len(PLACES) // 2])):
                key = f"{name} {size} {place} {seed}"
                if key not in table:
                    factor = 2.0 ** (place / STEPS_PER_DOUBLING)
                    job = ArmJob(size, factor, seed, GIVEN_UP * shortest)
                    arm = _train_arm(study, job, lambda *_: None)
                    table[key] = arm.updates if arm.outcome == "reached" else math.inf
                    path.write_text(json.dumps(table))
                shortest = min(shortest, table[key])
    return table


class Lookup:
    """Counts what a search looks up, and stops hopeless runs as the sweep does."""

    def __init__(self, look: Look, cap: float) -> None:
        self.look, self.cap = look, cap
        self.seen: dict[int, float] = {}
        self.spent = 0.0  # updates

    def __call__(self, place: int) -> float:
        if place not in self.seen:
            limit = min(self.cap, HOPELESS * min(self.seen.values(), default=math.inf))
            updates = self.look(place)
            self.spent += min(updates, limit)
            self.seen[place] = updates if updates <= limit else math.inf
        return self.seen[place]

    @property
    def best(self) -> int:
        return min(self.seen, key=self.seen.__getitem__)


def walk(look: Lookup, size: int, rates: int = 3) -> None:
    """The sweep's own search."""
    from rightbatch.core.sweep import Arm

    study: Any = type("Study", (), {"rates": rates, "seeds": 1})
    chain = _first_seed(study, size, Board("", 0, None))
    arm = None
    while True:
        try:
            job: Any = chain.send(arm)  # type: ignore[arg-type]
        except StopIteration:
            return
        place = round(STEPS_PER_DOUBLING * math.log2(job.factor))
        updates = look(place) if place in PLACES else math.inf
        arm = Arm(
            batch_size=size,
            factor=job.factor,
            learning_rate=1,
            seed=0,
            outcome="reached" if math.isfinite(updates) else "censored",
            updates=updates if math.isfinite(updates) else 1.0,
            value=None,
        )


def sampled(look: Lookup, kind: str, runs: int, seed: int) -> None:
    """Optuna's ask and tell."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    samplers: dict[str, Callable[[], Any]] = {
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=3),
    }
    study = optuna.create_study(sampler=samplers[kind]())
    study.enqueue_trial({"place": 0})
    for _ in range(runs):
        trial = study.ask()
        updates = look(trial.suggest_int("place", PLACES[0], PLACES[-1]))
        study.tell(trial, math.log(min(updates, 2 * look.cap)))


def judge(look: Lookup, expected: dict[int, float], best: int | None = None) -> tuple[float, ...]:
    """Excess over the best rate, runs, and updates spent over those of the best rate."""
    oracle = min(expected.values())
    chosen = expected[look.best if best is None else best]
    return chosen / oracle - 1, len(look.seen), look.spent / oracle


def smoothed(updates: Callable[[int, int], float], cap: float) -> dict[int, float]:
    """Updates expected at each rate: geometric mean over all seeds and both neighbours."""
    logs = {p: np.mean([math.log(min(updates(p, s), 2 * cap)) for s in range(SEEDS)]) for p in PLACES}
    near = {p: [logs[q] for q in (p - 1, p, p + 1) if q in logs] for p in PLACES}
    return {place: math.exp(np.mean(values)) for place, values in near.items()}


def searches(table: Table, name: str, size: int, cap: float) -> dict[str, Any]:
    def updates(place: int, seed: int) -> float:
        return table[f"{name} {size} {place} {seed}"]

    expected = smoothed(updates, cap)
    found: dict[str, list[tuple[float, ...]]] = {}
    for turn in range(REPEATS):
        seeds = np.random.default_rng(turn).permutation(SEEDS).tolist()
        for rates in (3, 5):
            looks = [Lookup(lambda place, s=seed: updates(place, s), cap) for seed in seeds[:3]]
            walk(looks[0], size, rates)
            found.setdefault(f"{rates} rates or more, one seed", []).append(judge(looks[0], expected))
            tried = sorted(looks[0].seen, key=looks[0].seen.__getitem__)
            logs = {p: sum(math.log(min(one(p), 2 * cap)) for one in looks) for p in tried}
            best = min(tried, key=logs.__getitem__)
            excess, _, _ = judge(looks[0], expected, best)
            runs, spent = 3 * len(tried), sum(one.spent for one in looks) / min(expected.values())
            found.setdefault(f"{rates} rates or more, three seeds", []).append((excess, runs, spent))
            for kind in ("random", "tpe"):
                for effort, count in (("one seed", len(tried)), ("three seeds", runs)):
                    look = Lookup(lambda place, s=seeds[0]: updates(place, s), cap)
                    sampled(look, kind, count, turn)
                    label = f"{kind}, as many runs as {rates} rates and {effort}"
                    found.setdefault(label, []).append(judge(look, expected))
    return {
        label: {
            "excess_updates_median": round(float(np.median([r[0] for r in rows])), 3),
            "excess_updates_mean": round(float(np.mean([r[0] for r in rows])), 3),
            "excess_updates_90": round(float(np.quantile([r[0] for r in rows], 0.9)), 3),
            "different_runs": round(float(np.mean([r[1] for r in rows])), 1),
            "updates_spent_over_best": round(float(np.mean([r[2] for r in rows])), 1),
        }
        for label, rows in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=["digits"])
    parser.add_argument("--peers", required=True, help="a folder to import optuna from")
    parser.add_argument("--table", type=Path, default=Path("search.json"))
    options = parser.parse_args()
    sys.path.append(options.peers)
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for name in options.tasks:
        table = make_table(name, options.table)
        task = load_task(name)
        whole = task.recipe.total_examples(task.recipe.batch_size, task.num_train_examples)
        for size in SIZES:
            rows[f"{name}, batch {size}"] = searches(table, name, size, 2 * whole / size)
    save("validate_search", {"repeats": REPEATS, "rates_in_table": len(PLACES), "rows": rows})


if __name__ == "__main__":
    main()
