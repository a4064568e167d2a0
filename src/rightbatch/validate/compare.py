"""From finished runs to a comparison: the batch-size effect, and apart from it each side's own gap.

Two different words: the *generalization gap* of a run is its training metric less its validation
metric; the *batch-size effect* is the validation metric of one run less that of another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from rightbatch.core.comparison import (
    Comparison,
    CompletedRun,
    Difference,
    Matching,
    Side,
    SideName,
    ToTarget,
    Verdict,
)
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.recipe import Target
from rightbatch.core.run import Outcome
from rightbatch.core.units import format_number
from rightbatch.validate.statistics import (
    LEVEL,
    Cost,
    cost_ratio,
    judge,
    metric_step,
    more_seeds,
    paired_difference,
)

UNEQUAL_TIME = 0.1
"""From which ratio on, above 1 or below, runs that were matched by time did not have the same time."""
SHARPNESS_CAVEATS = (
    "Sharpness describes a solution; it does not explain a difference in accuracy.",
    "It changes when weights are rescaled and the function is not (Dinh et al. 2017, arXiv:1703.04933),"
    " and the learning rate moves it, too.",
    "Over modern networks it does not consistently follow the test error (Andriushchenko et al. 2023,"
    " arXiv:2302.07011).",
)
_CENSORED = "runs of {} ended before the target, or those of {} met it at their first evaluation"


def metric_to_judge(metrics: Sequence[str], target: Target | None) -> tuple[str, bool]:
    """The metric that a verdict is on, and whether higher is better: the target's, or the loss.

    Raises:
        InvalidInputError: there is no target, and no metric named loss.
    """
    if target is not None:
        return target.metric, target.higher_is_better
    if "loss" in metrics:
        return "loss", False
    found = f"metrics {', '.join(metrics)} and no target"
    hint = 'give the task a target: target=rb.Target("accuracy", 0.97)'
    raise InvalidInputError(found, need="to know which one counts, and which way", hint=hint)


def compare(  # noqa: PLR0913 - the fields of what comes out
    *,
    task: str,
    metric: str,
    higher_is_better: bool,
    target: Target | None,
    matched_by: Matching,
    candidate: Side,
    reference: Side,
    margin: float,
    num_valid_examples: int,
    runs: Sequence[CompletedRun],
    seeds_asked: int | None = None,
) -> Comparison:
    """Judge paired runs; a run that diverged or missed its target is counted and never dropped.

    Args:
        task: its name.
        metric: what is judged.
        higher_is_better: of the metric.
        target: of the runs; None leaves out what it cost to reach one.
        matched_by: what both sides had the same of.
        candidate: what is questioned.
        reference: what it is held against.
        margin: below which a difference does not matter.
        num_valid_examples: that the metric is over, whose number bounds its resolution.
        runs: of both sides; one whose partner was not made is kept, and judges nothing.
        seeds_asked: pairs there are to be; None where all were made.
    """
    found = {(run.side, run.seed): run for run in runs}
    seeds = sorted(seed for side, seed in found if side == "candidate" and ("reference", seed) in found)
    pairs = [(found["candidate", seed], found["reference", seed]) for seed in seeds]
    paired = [run for pair in pairs for run in pair]
    whole = [(ours, theirs) for ours, theirs in pairs if ours.metrics and theirs.metrics]
    differences = [ours.metrics[metric] - theirs.metrics[metric] for ours, theirs in whole]
    ends = [run.metrics[metric] for run in paired if metric in run.metrics]
    step = metric_step(ends, num_valid_examples)
    difference = paired_difference(differences, step=step)
    verdict, why = _despite_divergence(paired, len(seeds))
    if len(seeds) < 2:
        why = f"undecided: {len(seeds)} pair(s) of runs so far, and it takes 2 to see a spread"
        verdict = "undecided"
    elif why is None:
        verdict = judge(difference, margin, higher_is_better=higher_is_better)
        why = _sentence(verdict, difference, metric, margin, candidate.name, reference.name)
    further = more_seeds(differences, margin, step) if len(whole) == len(pairs) else None
    return Comparison(
        task=task,
        metric=metric,
        higher_is_better=higher_is_better,
        target=target,
        matched_by=matched_by,
        candidate=candidate,
        reference=reference,
        seeds=len(seeds),
        margin=margin,
        metric_step=step,
        level=LEVEL,
        verdict=verdict,
        reason=why,
        difference=difference,
        candidate_gap=_gap(paired, "candidate", metric),
        reference_gap=_gap(paired, "reference", metric),
        reached=None
        if target is None or not pairs
        else (_reached(paired, "candidate"), _reached(paired, "reference")),
        to_target=()
        if target is None or not pairs
        else (_to_target(pairs, "examples"), _to_target(pairs, "seconds")),
        seconds_ratio=_seconds_ratio(paired) if len(whole) == len(pairs) > 0 else None,
        more_seeds=further if verdict == "undecided" else 0,
        runs=tuple(runs),
        unfinished_runs=0 if seeds_asked is None else 2 * seeds_asked - len(runs),
    )


def _despite_divergence(runs: Sequence[CompletedRun], seeds: int) -> tuple[Verdict, str | None]:
    """A verdict where runs diverged: a side that never trains is worse than one that always does."""
    lost: dict[SideName, int] = {"candidate": 0, "reference": 0}
    for run in runs:
        lost[run.side] += run.outcome is Outcome.DIVERGED
    ours, theirs = lost["candidate"], lost["reference"]
    if ours == theirs == 0:
        return "undecided", None
    counts = (
        f"{ours} of {seeds} runs of the candidate and {theirs} of {seeds} of the reference diverged"
    )
    if (ours, theirs) == (seeds, 0):
        return "worse", f"worse: {counts}"
    if (ours, theirs) == (0, seeds):
        return "better", f"better: {counts}"
    return "undecided", f"undecided: {counts}, and the pairs that are left are no fair sample"


def _sentence(
    verdict: Verdict, found: Difference | None, metric: str, margin: float, ours: str, theirs: str
) -> str:
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    span = f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
    what = f"{metric} {span} for {ours} against {theirs}, over {found.num_pairs} paired seeds"
    limit = f"the margin of {format_number(margin)}"
    tail: dict[Verdict, str] = {
        "better": "",
        "worse": "",
        "equivalent": f": any difference is below {limit}",
        "undecided": f": neither a difference nor its absence within {limit} is shown",
    }
    return f"{verdict}: {what}{tail[verdict]}"


def _gap(runs: Sequence[CompletedRun], side: SideName, metric: str) -> Difference | None:
    return paired_difference([
        run.train_metrics[metric] - run.metrics[metric]
        for run in runs
        if run.side == side and metric in run.metrics and metric in run.train_metrics
    ])


def _reached(runs: Sequence[CompletedRun], side: SideName) -> int:
    return sum(run.side == side and run.examples_to_target is not None for run in runs)


def _seconds_ratio(runs: Sequence[CompletedRun]) -> float:
    ours, theirs = (
        sum(run.seconds for run in runs if run.side == side) for side in ("candidate", "reference")
    )
    return ours / theirs


def _to_target(
    pairs: Sequence[tuple[CompletedRun, CompletedRun]], quantity: Literal["examples", "seconds"]
) -> ToTarget:
    """A run that missed the target counts with its whole length, as a bound."""

    def cost(run: CompletedRun) -> Cost:
        reached = run.examples_to_target if quantity == "examples" else run.seconds_to_target
        if reached is None:
            return Cost(float(run.examples) if quantity == "examples" else run.seconds, math.inf)
        return Cost(0.0 if run.met_at_first else reached, reached)

    ratio, at_least, at_most = cost_ratio([(cost(ours), cost(theirs)) for ours, theirs in pairs])
    return ToTarget(quantity=quantity, ratio=ratio, at_least=at_least, at_most=at_most)


def comparison_lines(comparison: Comparison) -> list[str]:
    """What the comparison says beside its verdict, a sentence a line."""
    metric = comparison.metric
    lines = [
        f"Matched by {comparison.matched_by}. Intervals are {comparison.level:.0%}, paired by seed."
    ]
    lines += _time_lines(comparison)
    lost = {run.side: run for run in reversed(comparison.runs) if run.outcome is Outcome.DIVERGED}
    lines += [f"The {side} diverged with seed {run.seed}: {run.message}." for side, run in lost.items()]
    missing = comparison.unfinished_runs
    if missing and comparison.remedies is None:
        lines.append(
            f"The budget ended before {missing} of the runs asked for; the verdict is that of"
            f" {comparison.seeds} pair(s). The same command goes on. To take whichever of several looks"
            " is decided makes chance verdicts likelier."
        )
    elif missing:
        lines.append(f"The budget ended before {missing} runs of remedies; the same command goes on.")
    for name, gap in (("candidate", comparison.candidate_gap), ("reference", comparison.reference_gap)):
        if gap is not None:
            lines.append(
                f"Generalization gap of the {name}: training less validation {metric} {_span(gap)}."
            )
    if comparison.reached is not None:
        ours, theirs = comparison.reached
        n = comparison.seeds
        lines.append(
            f"Target {comparison.target}: candidate {ours} of {n}, reference {theirs} of {n} runs."
        )
    for cost in comparison.to_target:
        lines.append(
            f"{cost.quantity.capitalize()} to the target, candidate over reference: {_cost(cost)}."
        )
    if comparison.verdict == "worse" and comparison.remedies is None:
        lines.append(
            "A rate that does not fit the batch is the commonest cause: compare with --tune-lr 1m in"
            " another --out. What else may help is tried with --remedy."
        )
    is_whole = comparison.remedies is not None or not missing
    if comparison.verdict == "undecided" and is_whole:
        lines.append(_what_would_decide(comparison))
    return lines


def _time_lines(comparison: Comparison) -> list[str]:
    """Where both sides were to have the same time, what they did have."""
    ratio = comparison.seconds_ratio
    if comparison.matched_by != "time" or ratio is None:
        return []
    lines = [f"Training time, candidate over reference: {ratio:.2f}."]
    if abs(math.log(ratio)) > math.log(1 + UNEQUAL_TIME):
        lines.append(
            f"That is more than {UNEQUAL_TIME:.0%} from the equal time that the paces promised, and the"
            " verdict is on these lengths: compare again while nothing else runs, in another --out."
        )
    return lines


def _what_would_decide(comparison: Comparison) -> str:
    if any(run.outcome is Outcome.DIVERGED for run in comparison.runs):
        return "No number of seeds is foreseen to decide it while runs diverge."
    if not comparison.more_seeds:
        return "No number of seeds up to 100 more is foreseen to decide it at this spread."
    return (
        f"At this spread about {comparison.more_seeds} more seed(s) would decide: --seeds"
        f" {comparison.seeds + comparison.more_seeds}. Adding seeds because a verdict is missing makes"
        " chance verdicts likelier than the level says."
    )


def sharpness_lines(comparison: Comparison) -> list[str]:
    """Curvature where both sides ended, as means over seeds; nothing where it was not asked for."""
    lines: list[str] = []
    for side in ("candidate", "reference"):
        seen = [run.sharpness for run in comparison.runs if run.side == side and run.sharpness]
        if seen:
            mean = {key: sum(one[key] for one in seen) / len(seen) for key in seen[0]}
            lines.append(
                f"Sharpness of the {side}: largest eigenvalue {mean['largest_eigenvalue']:.3g}"
                f" (residual {mean['largest_eigenvalue_residual']:.1g}), trace {mean['trace']:.3g}"
                f" (standard error {mean['trace_standard_error']:.2g}), SAM {mean['sam']:.3g} and"
                f" adaptive SAM {mean['adaptive_sam']:.3g} at radius {mean['rho']:g}; training loss"
                f" over {mean['examples']:.0f} examples, evaluation mode, mean of {len(seen)} runs."
            )
    return [*lines, *SHARPNESS_CAVEATS] if lines else []


def _span(found: Difference) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:+.4f}"
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def _cost(cost: ToTarget) -> str:
    if cost.ratio is not None:
        ends = cost.ratio
        span = f" ({ends.low:.2f} to {ends.high:.2f})" if ends.low and ends.high else ""
        return f"{ends.value:.2f}{span}"
    if cost.at_least is not None:
        return f"at least {cost.at_least:.2f}; {_CENSORED.format('the candidate', 'the reference')}"
    if cost.at_most is not None:
        return f"at most {cost.at_most:.2f}; {_CENSORED.format('the reference', 'the candidate')}"
    return f"not known; {_CENSORED.format('both sides', 'both')}"
