"""``rightbatch scale``: learning rate and companions over a range of batch sizes, by cited rules."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cyclopts import Parameter

from rightbatch.cli.output import Answer
from rightbatch.cli.source import Flag, option
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Decision
from rightbatch.core.recipe import Recipe
from rightbatch.core.sources import SOURCES
from rightbatch.report.tables import Table, value_text
from rightbatch.report.terminal import render

if TYPE_CHECKING:
    from rightbatch.plan.scaling_table import ScaledRow


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """Constants that move beside the learning rate; torch's defaults stand in for those not given."""

    momentum: float | None = None
    """Today's momentum, of SGD."""
    weight_decay: float | None = None
    """Today's weight decay."""
    betas: str | None = None
    """Today's two betas with a comma between: 0.9,0.999."""
    eps: float | None = None
    """Today's eps."""
    ema_decay: float | None = None
    """Today's decay of averaged weights, per update."""
    batch_norm_momentum: float | None = None
    """Momentum of the model's BatchNorm layers, where the micro-batch is the whole batch."""
    warmup_steps: int = 0
    """Today's updates of warmup."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the task, for the rules that need it."""

    examples: int | None = None
    """Training examples, for the updates per epoch."""
    noise_scale: float | None = None
    """Critical batch size or noise scale in examples, for the rules that saturate."""
    pairs: str | None = None
    """Best rates found at two batch sizes or more, for the surge form: 32:1e-3,512:2e-3."""


NONE_GIVEN = Companions()
NOTHING_KNOWN = Known()


def scale(
    *,
    lr: float,
    batch: int,
    to: int,
    optimizer: str = "adamw",
    known: Known = NOTHING_KNOWN,
    companions: Companions = NONE_GIVEN,
    csv: Flag = False,
    json: Flag = False,
) -> Answer:
    """Move a learning rate and its companions to other batch sizes by cited rules.

    Args:
        lr: Learning rate that was tuned at --batch.
        batch: Global batch it was tuned at, in examples.
        to: Global batch to move to, in examples; the doublings between are shown too.
        optimizer: A torch.optim class, in any case; another optimizer keeps its constants.
        known: What is known of the task, for the rules that need it.
        companions: Constants that move beside the learning rate.
        csv: Print comma-separated values on stdout, one line for each batch size.
        json: Print one JSON document on stdout.

    Raises:
        InvalidInputError: a number is out of its range, or the optimizer is a mistyped one.
    """
    from rightbatch.plan.rates import fit_surge
    from rightbatch.plan.scaling_table import find_family, scaling_table

    if csv and json:
        raise InvalidInputError("--csv and --json", need="one format", hint="leave one of them out")
    for name, count in (("--to", to), ("--examples", known.examples)):
        if count is not None and count < 1:
            raise InvalidInputError(f"{name} {count}", need="1 or more", hint="count examples")
    recipe = _recipe(lr, batch, optimizer, companions)
    rows = scaling_table(
        recipe,
        _doublings(batch, to),
        known.examples,
        noise_scale=known.noise_scale,
        surge=fit_surge(option("--pairs", _parse_pairs, known.pairs)) if known.pairs else None,
        batch_norm_momentum=companions.batch_norm_momentum,
    )
    document = {
        "task": None,
        "optimizer": optimizer,
        "family": find_family(optimizer),
        "rows": [_row_document(row) for row in rows],
    }
    if csv:
        return Answer(document=document, text=(_csv_text(rows),))
    unknown = find_family(optimizer) == "other"
    return Answer(
        document=document,
        text=(
            render(_constants_table(rows)),
            "The rate by every rule that the given numbers allow:",
            render(_rates_table(rows)),
            *(_rule_text(decision) for decision in rows[-1].decisions),
            *([f"No rule is known for {optimizer}: its constants are kept."] if unknown else []),
            "The rules hold below the critical batch size; try half and twice the moved rate as well.",
        ),
    )


def _recipe(lr: float, batch: int, optimizer: str, companions: Companions) -> Recipe:
    betas = companions.betas
    return Recipe(
        optimizer=optimizer,
        lr=lr,
        batch_size=batch,
        epochs=1,
        momentum=companions.momentum,
        weight_decay=companions.weight_decay,
        betas=option("--betas", _parse_pair, betas) if betas else None,
        eps=companions.eps,
        ema_decay=companions.ema_decay,
        warmup_examples=companions.warmup_steps * batch,
    )


def _row_document(row: ScaledRow) -> dict[str, object]:
    return {
        "batch_size": row.batch_size,
        "updates_per_epoch": row.updates_per_epoch,
        "decisions": [decision.model_dump(mode="json") for decision in row.decisions],
        "rates": [{"rule": r.rule, "value": r.value, "source": r.source} for r in row.rates],
    }


def _constants_table(rows: list[ScaledRow]) -> Table:
    counts = ("updates per epoch",) if rows[0].updates_per_epoch else ()
    names = [decision.name.replace("_", " ") for decision in rows[0].decisions]
    return Table(
        columns=("batch", *counts, *names),
        rows=tuple(
            (
                f"{row.batch_size:,}",
                *([f"{row.updates_per_epoch:,}"] if counts else []),
                *(value_text(decision.value, decision.name) for decision in row.decisions),
            )
            for row in rows
        ),
    )


def _rates_table(rows: list[ScaledRow]) -> Table:
    return Table(
        columns=("batch", *(rate.rule for rate in rows[0].rates)),
        rows=tuple(
            (f"{row.batch_size:,}", *(value_text(rate.value) for rate in row.rates)) for row in rows
        ),
    )


def _csv_text(rows: list[ScaledRow]) -> str:
    names = [decision.name for decision in rows[0].decisions]
    rules = [f"rate_{rate.rule.replace(' ', '_')}" for rate in rows[0].rates]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["batch_size", "updates_per_epoch", *names, *rules])
    for row in rows:
        updates = "" if row.updates_per_epoch is None else row.updates_per_epoch
        values = [*(d.value for d in row.decisions), *(r.value for r in row.rates)]
        writer.writerow([row.batch_size, updates, *values])
    return text.getvalue().rstrip("\n")


def _rule_text(decision: Decision) -> str:
    source = SOURCES[decision.source]
    return f"{decision.name}: {decision.rule}, {decision.evidence} ({source.title}; {source.where})"


def _doublings(start: int, end: int) -> list[int]:
    """Batch sizes from one to the other by doubling or halving, both ends included.

    >>> _doublings(32, 200), _doublings(64, 16)
    ([32, 64, 128, 200], [64, 32, 16])
    """
    sizes = [start]
    while sizes[-1] != end:
        sizes.append(min(2 * sizes[-1], end) if end > start else max(sizes[-1] // 2, end))
    return sizes


def _parse_pair(text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError as error:
        found, hint = repr(text), "write them with a comma: 0.9,0.999"
        raise InvalidInputError(found, need="two numbers", hint=hint) from error
    return first, second


def _parse_pairs(text: str) -> list[tuple[float, float]]:
    """Read ``32:1e-3,512:2e-3``.

    >>> _parse_pairs("32:1e-3,512:2e-3")
    [(32.0, 0.001), (512.0, 0.002)]

    Raises:
        InvalidInputError: the text is no such pairs.
    """
    try:
        parts = [part.split(":") for part in text.split(",")]
        return [(float(size), float(rate)) for size, rate in parts]
    except ValueError as error:
        found, hint = repr(text), "write batch:rate with commas between: 32:1e-3,512:2e-3"
        raise InvalidInputError(found, need="pairs of batch and rate", hint=hint) from error
