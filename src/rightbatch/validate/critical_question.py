"""What a measurement by branches is asked: where they begin, at which batches, and for how long."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.record import SCHEMA_VERSION, Record
from rightbatch.core.schedule import rate_at
from rightbatch.train.checkpoint import read_manifest

WINDOW_SHARE = 0.1
"""Of the recipe's run: what every branch sees, at least."""
FEWEST_UPDATES = 8
"""Of the largest batch in a branch."""
LOOKS = 4
"""The loss is averaged over so many looks in the last quarter of a branch."""


class CriticalQuestion(Record):
    """What was asked before the first branch; only more seeds may be asked for later."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: str
    fingerprint: str
    batch_sizes: tuple[int, ...]
    points: tuple[int, ...]
    """Examples seen at the points where branches begin."""
    window_examples: int
    seeds: int
    tolerance: float
    device: str
    checkpoints: tuple[str, ...] = ()
    """SHA-256 of the saved weights that branches begin with; none if the recipe is trained so far."""


def pose_question(
    facts: TaskFacts,
    batch_sizes: Sequence[int],
    points: Sequence[float] | Mapping[int, Path],
    seeds: int,
    tolerance: float,
    device: str,
) -> CriticalQuestion:
    """Check what is asked, and set the length of the branches.

    Raises:
        InvalidInputError: as ``measure_critical`` says.
    """
    num = facts.num_train_examples
    doubles = all(b == 2 * a for a, b in itertools.pairwise(batch_sizes))
    if len(batch_sizes) < 2 or not doubles or batch_sizes[0] < 1 or batch_sizes[-1] > num:
        found = f"batch sizes {', '.join(map(str, batch_sizes))}"
        need = f"two or more that double, up to the {num:,} training examples"
        raise InvalidInputError(found, need=need, hint="--batch 32:1024")
    saved = points if isinstance(points, Mapping) else {}
    if not saved and not (points and all(0 <= share <= 1 for share in points)):
        found, hint = f"points {', '.join(f'{p:g}' for p in points)}", "--points 0.05,0.2,0.5"
        raise InvalidInputError(found, need="shares of the recipe's run, from 0 to 1", hint=hint)
    if seeds < 2 or not 0 < tolerance < math.inf:
        found, hint = f"{seeds} seed(s) and tolerance {tolerance:g}", "--seeds 5"
        raise InvalidInputError(found, need="2 seeds or more, and a tolerance above 0", hint=hint)
    whole = facts.recipe.total_examples(facts.recipe.batch_size, num)
    # A quarter must be a whole number of updates, also of the largest batch.
    unit = LOOKS * batch_sizes[-1]
    updates = max(FEWEST_UPDATES // LOOKS, round(WINDOW_SHARE * whole / unit))
    asked = CriticalQuestion(
        task=facts.name,
        fingerprint=facts.fingerprint,
        batch_sizes=tuple(batch_sizes),
        points=tuple(sorted(saved or {round(share * whole) for share in points})),
        window_examples=unit * updates,
        seeds=seeds,
        tolerance=tolerance,
        device=device,
        checkpoints=tuple(read_manifest(path).sha256 for _, path in sorted(saved.items())),
    )
    for point in asked.points:
        if rate_share(facts, asked, point) == 0:
            found = (
                f"learning rate 0 after {point:,} of {whole:,} examples, where the schedule has ended"
            )
            raise InvalidInputError(found, need="a rate to branch with", hint="begin earlier")
    return asked


def rate_share(facts: TaskFacts, asked: CriticalQuestion, point: int) -> float:
    """What the schedule leaves of the peak rate in the middle of a branch, where it is held."""
    recipe = facts.recipe
    whole = recipe.total_examples(recipe.batch_size, facts.num_train_examples)
    return rate_at(recipe, 1.0, point + asked.window_examples / 2, whole)
