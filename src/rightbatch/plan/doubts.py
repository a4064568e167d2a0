"""What to measure next: how much of the expected regret each uncertain input carries."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import get_args

from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import Doubt, Doubtful
from rightbatch.plan.draws import Draws

SMALL_REGRET = 0.005  # below it nothing that could be learned would change the choice noticeably


def find_doubts(
    regret_of: Callable[[Draws], float], draws: Draws, facts: TaskFacts
) -> tuple[Doubt, ...]:
    """Share of the choice's expected regret that goes when one source is known; largest first.

    To second order regret is the variance of the best batch's place times the curvature there, so
    these are first-order shares of that variance; interactions leave them short of a sum of 1.

    Args:
        regret_of: expected regret of the choice under some draws.
        draws: in which everything is uncertain.
        facts: name the commands.

    Returns:
        Sources with a share of 5 % or more; none where the regret is below half a per cent.
    """
    whole = regret_of(draws)
    if whole < SMALL_REGRET:
        return ()
    shares: dict[Doubtful, float] = {
        source: 1 - regret_of(draws.fixing(source)) / whole for source in get_args(Doubtful)
    }
    return tuple(
        Doubt(name=source, share=min(share, 1.0), measure=_measure(source, facts))
        for source, share in sorted(shares.items(), key=lambda item: (-item[1], item[0]))
        if share >= 0.05
    )


def _measure(source: Doubtful, facts: TaskFacts) -> str:
    task = shlex.quote(facts.spec)
    longer = f"`rightbatch plan {task} --time-budget 10m --refresh`"
    return {
        "noise scale": f"measure the noise longer: {longer}",
        "calibration": "measure the critical batch size itself, by branches of training:"
        f" `rightbatch critical {task}`",
        "step times": f"time more repetitions on a quiet machine: {longer}",
        "loader": f"time the loader longer: {longer}",
        "bandwidth": "measure the all-reduce between the devices and give it: --bandwidth",
    }[source]
