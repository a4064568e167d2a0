"""Does a sampler find a better rate for a batch, or with fewer runs, than walking over doublings?

Runs at 25 rates a third of a doubling apart, from 1/8 to 32 times the rule's, with four seeds, make a
table of updates to the target (``--table FILE`` keeps it and goes on with it); a run is given up after
four times the updates of the best. Searches then look runs up in it, which costs nothing, and are
repeated 200 times with seeds of their own. Each sees one training seed, as the sweep's first does;
what it chose is judged by the three others. Optuna's samplers begin with the rule's rate and may choose
among all rates of the table.

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


def walk(look: Lookup, size: int) -> None:
    """The sweep's own search."""
    from rightbatch.core.sweep import Arm

    study: Any = type("Study", (), {"rates": 3, "seeds": 1})
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


def judge(look: Lookup, judged: Callable[[int], float], oracle: float) -> tuple[float, float, float]:
    """Excess over the best rate, runs, and updates spent over those of the best rate."""
    return judged(look.best) / oracle - 1, len(look.seen), look.spent / oracle


def searches(table: Table, name: str, size: int, cap: float) -> dict[str, Any]:
    def updates(place: int, seed: int) -> float:
        return table[f"{name} {size} {place} {seed}"]

    found: dict[str, list[tuple[float, float, float]]] = {}
    for turn in range(REPEATS):
        own = turn % SEEDS
        others = [seed for seed in range(SEEDS) if seed != own]

        def judged(place: int, others: list[int] = others) -> float:
            return math.exp(np.mean([math.log(min(updates(place, s), 2 * cap)) for s in others]))

        oracle = min(judged(place) for place in PLACES)
        look = Lookup(lambda place, own=own: updates(place, own), cap)
        walk(look, size)
        found.setdefault("walk over doublings", []).append(judge(look, judged, oracle))
        runs = len(look.seen)
        for kind in ("random", "tpe"):
            for label, count in (("as many runs", runs), ("10 runs", 10), ("20 runs", 20)):
                look = Lookup(lambda place, own=own: updates(place, own), cap)
                sampled(look, kind, count, turn)
                found.setdefault(f"{kind}, {label}", []).append(judge(look, judged, oracle))
    return {
        label: {
            "excess_updates_median": round(float(np.median([r[0] for r in rows])), 3),
            "excess_updates_mean": round(float(np.mean([r[0] for r in rows])), 3),
            "excess_updates_90": round(float(np.quantile([r[0] for r in rows], 0.9)), 3),
            "runs": round(float(np.mean([r[1] for r in rows])), 1),
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
