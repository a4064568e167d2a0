"""Is the prior correction exact? Models that are right by construction, on windows as they are drawn.

Sequences and labels are those of ``splice``'s training loci; inputs are made up, so that the true
posterior is a logistic function of what the model sees and the fit has nothing to get wrong:

    content    x ~ Normal(4 y, 1): what a position looks like depends on its label alone
    context    the same x, and how near the next other site is: windows around sites bring such places

Each model is fitted to the positions of 3,200 windows as often as they were drawn, and its mean
probability over all loci is divided by the share of sites there: as fitted, corrected by the shares
drawn and true, with offsets fitted on fresh inputs, and fitted with each position weighted by one over
how often it is drawn on average. 1 is exact; the true posterior's own ratio is the noise of the inputs.

    python benchmarks/sparse/calibration.py --seeds 5
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import save
from rightbatch.fit.intervals import t_quantile
from rightbatch.sparse.correct import correct_probabilities, fit_offsets
from rightbatch.sparse.splice import WINDOW, load_sequences
from rightbatch.sparse.statistics import law_of_windows
from rightbatch.sparse.windows import LabelledSequences, RandomWindows, starts

Floats = NDArray[np.float64]
SHIFT = 4.0  # between the means of x at sites and elsewhere, in standard deviations
NEAR, MIDDLE = 126, 1000  # bases to the next other site; the first is the small net's context
NUM_WINDOWS = 3200


def cells(labels: NDArray[Any]) -> NDArray[np.int64]:
    """How near the next other site is: 0 near, 1 middle, 2 far, for every position."""
    sites = np.flatnonzero(labels > 0)
    place = np.arange(len(labels))
    found = np.full(len(labels), np.inf)
    if len(sites):
        after = np.searchsorted(sites, place, side="right")
        before = np.searchsorted(sites, place, side="left") - 1
        for index, ok in ((after, after < len(sites)), (before, before >= 0)):
            distance = np.abs(sites[np.clip(index, 0, len(sites) - 1)] - place)
            found = np.minimum(found, np.where(ok, distance, np.inf))
    return np.digitize(found, [NEAR + 1, MIDDLE + 1])


def drawn(windows: RandomWindows) -> Floats:
    """How often each position was drawn, all sequences joined."""
    steps = [np.zeros(len(labels) + 1) for labels in windows.sequences.labels]
    for index in range(len(windows)):
        place = windows.place(index)
        step = steps[place.sequence]
        step[max(place.start, 0)] += 1
        step[min(place.start + windows.window, len(step) - 1)] -= 1
    return np.concatenate([np.cumsum(step)[:-1] for step in steps])


def expected(windows: RandomWindows) -> Floats:
    """How often each position is drawn on average in one window, from the law of the starts."""
    found: list[Floats] = []
    total = windows.sequences.num_positions
    num_sites = sum(int((labels > 0).sum()) for labels in windows.sequences.labels)
    shifts = np.arange(-windows.jitter, windows.jitter + 1) - windows.window // 2
    for labels in windows.sequences.labels:
        low, high = starts(len(labels), windows.window)
        plain = np.full(high - low + 1, len(labels) / total / (high - low + 1))
        where = np.flatnonzero(labels > 0)
        around = np.clip(where[:, None] + shifts, low, high).reshape(-1) - low
        centred = np.bincount(around, minlength=high - low + 1) / num_sites / len(shifts)
        chance = (1 - windows.centred) * plain + windows.centred * centred
        step = np.zeros(len(labels) + 1)
        first = np.arange(low, high + 1)
        np.add.at(step, np.maximum(first, 0), chance)
        np.subtract.at(step, np.minimum(first + windows.window, len(labels)), chance)
        found.append(np.cumsum(step)[:-1])
    return np.concatenate(found)


def fit(features: Floats, y: Floats, weights: Floats) -> Floats:
    """Weighted logistic regression by Newton's method, from the background's log-odds."""
    beta = np.zeros(features.shape[1])
    for _ in range(60):
        p = 1 / (1 + np.exp(-features @ beta))
        gap = features.T @ (weights * (y - p))
        if np.abs(gap).max() < 1e-9 * weights.sum():
            return beta
        hessian = (features * (weights * p * (1 - p))[:, None]).T @ features
        beta += np.clip(np.linalg.solve(hessian, gap), -3, 3)
    raise SystemExit("logistic regression did not converge")


def ratios(
    loci: LabelledSequences, share: float, seen: str, seed: int, place: NDArray[np.int64]
) -> dict[str, float]:
    """Mean probability over the share of sites on all loci, for every way to get there."""
    rng = np.random.default_rng((seed, 1))
    y = np.concatenate([labels > 0 for labels in loci.labels]).astype(float)
    windows = RandomWindows(
        loci, window=WINDOW, num_windows=NUM_WINDOWS, centred=share, jitter=WINDOW // 4, seed=seed
    )
    context = np.eye(3)[place] if seen == "context" else np.ones((len(y), 1))

    def look() -> Floats:
        return np.column_stack([context, SHIFT * y + rng.standard_normal(len(y))])

    x, fresh, held = look(), look(), look()
    true, sampled = float(y.mean()), law_of_windows(windows).positive_fraction
    times = drawn(windows)
    odds = np.array([y[place == c].mean() for c in range(3)])
    base = np.log(odds / (1 - odds))[place] if seen == "context" else np.log(true / (1 - true))
    posterior = 1 / (1 + np.exp(-(base + SHIFT * fresh[:, -1] - SHIFT**2 / 2)))
    logits = fresh @ (beta := fit(x, y, times))
    p = torch.from_numpy(1 / (1 + np.exp(-logits)))
    [offset] = fit_offsets(torch.from_numpy(held @ beta), true)
    even = fresh @ fit(x, y, times / expected(windows))
    means = {
        "posterior": posterior.mean(),
        "as fitted": float(p.mean()),
        "corrected": float(correct_probabilities(p, sampled=sampled, true=true).mean()),
        "offset": (1 / (1 + np.exp(-logits - offset))).mean(),
        "weighted": (1 / (1 + np.exp(-even))).mean(),
    }
    return {name: float(value / true) for name, value in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error(f"--seeds {given.seeds}: an interval needs 2")
    torch.set_num_threads(1)
    loci = load_sequences("train")
    place = np.concatenate([cells(labels) for labels in loci.labels])
    rows: list[dict[str, Any]] = []
    for seen in ("content", "context"):
        for share in (0.0, 0.5):
            runs = [ratios(loci, share, seen, seed, place) for seed in range(given.seeds)]
            row: dict[str, Any] = {"seen": seen, "centred": share, "seeds": given.seeds}
            for name in runs[0]:
                values = np.array([run[name] for run in runs])
                half = t_quantile(len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
                row[name] = {
                    "mean": round(float(values.mean()), 4),
                    "half_width": round(float(half), 4),
                }
            rows.append(row)
            print(row, flush=True)
    save("sparse_calibration", {"windows": NUM_WINDOWS, "rows": rows})


if __name__ == "__main__":
    main()
