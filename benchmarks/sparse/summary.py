"""Print the study of rare targets as markdown: tables with intervals, and verdicts on common claims.

Reads what there is of ``results/sparse_*.json``; a claim that needs a part that is not there, or that
no splice-site data can settle, is "not decided by this data".

    python benchmarks/sparse/summary.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import RESULTS
from rightbatch.fit.intervals import t_quantile
from rightbatch.sparse.losses import focal_gradient_factor

Run = dict[str, Any]
OPEN = "not decided by this data"


def load(name: str) -> dict[str, Any]:
    path = RESULTS / f"sparse_{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean and the half-width of its 90 % t interval; a lone value stands by itself."""
    x = np.array(list(values), float)
    if len(x) == 0:
        return "-"
    if len(x) == 1:
        return f"{x[0]:.{digits}f} (one run)"
    half = t_quantile(len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
    return f"{x.mean():.{digits}f} +- {half:.{digits}f}"


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the 90 % t interval of a mean; infinite for one value."""
    x = np.array(values, float)
    if len(x) < 2:
        return -np.inf, np.inf
    half = t_quantile(len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
    return float(x.mean() - half), float(x.mean() + half)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(lines)


class Study:
    """The runs, looked up by remedy and batch."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self.remedies = list(dict.fromkeys(run["remedy"] for run in runs))
        self.batches = sorted({run["batch"] for run in runs})

    def of(self, remedy: str | None = None, batch: int | None = None) -> list[Run]:
        """Runs of a remedy, at a batch; all where None."""
        return [
            run
            for run in self.runs
            if remedy in {None, run["remedy"]} and batch in {None, run["batch"]}
        ]

    def metric(self, name: str, remedy: str, batch: int | None = None) -> list[float]:
        return [run["metrics"][name] for run in self.of(remedy, batch)]

    def gain(self, remedy: str, against: str, batch: int | None = None) -> list[float]:
        """Differences in average precision, paired by batch and seed."""
        theirs = {(run["batch"], run["seed"]): run for run in self.of(against, batch)}
        return [
            run["metrics"]["average_precision"] - theirs[key]["metrics"]["average_precision"]
            for run in self.of(remedy, batch)
            if (key := (run["batch"], run["seed"])) in theirs
        ]

    def signal(self, key: str, stage: str, remedy: str, batch: int | None = None) -> list[float]:
        """A number of the positives' gradient at one stage, where it was bounded."""
        found = [
            gradient[key]
            for run in self.of(remedy, batch)
            for gradient in run["gradients"]
            if gradient["stage"] == stage
        ]
        return [value for value in found if value is not None]


def precision_table(study: Study) -> str:
    kinds = ("average_precision_acceptor", "average_precision_donor")
    rows = [
        [
            remedy,
            *(
                " / ".join(spread(study.metric(kind, remedy, batch)) for kind in kinds)
                for batch in study.batches
            ),
        ]
        for remedy in study.remedies
    ]
    return table(["remedy", *(f"batch {b}: acceptor / donor" for b in study.batches)], rows)


def gain_table(study: Study) -> str:
    rows = [
        [
            remedy,
            spread(study.gain(remedy, "plain")),
            *(spread(study.gain(remedy, "prior-bias", batch)) for batch in study.batches),
        ]
        for remedy in study.remedies
        if remedy not in {"plain", "prior-bias"}
    ]
    more = [f"less prior-bias, batch {batch}" for batch in study.batches]
    return table(["remedy", "less plain, all batches", *more], rows)


def signal_table(study: Study) -> str:
    rows = [
        [
            remedy,
            f"{np.mean([run['positive_fraction'] for run in study.of(remedy)]):.3%}",
            *(spread((100 * x for x in study.signal("mass_share", s, remedy)), 1) for s in STAGES),
            *(spread(study.signal("noise_scale", s, remedy), 2) for s in STAGES),
        ]
        for remedy in study.remedies
    ]
    columns = ["remedy", "positives", "share at first, %", "share at the end, %"]
    return table([*columns, "B+ at first", "B+ at the end"], rows)


STAGES = ("init", "now")


def counts_table(laws: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['centred']:.0%}",
            f"{row['batch']}",
            f"{row['positives']['predicted']:.1f} +- {row['sd']['predicted']:.1f}",
            f"{row['positives']['observed']:.1f} +- {row['sd']['observed']:.1f}",
            f"{row['none']['predicted']:.2%}",
            f"{row['none']['observed']:.2%} +- {1.645 * row['none']['standard_error']:.2%}",
            f"{row['none']['if_independent']:.1e}",
        ]
        for row in laws["counts"]
    ]
    columns = ["centred", "batch", "positives predicted", "observed"]
    return table([*columns, "P(none) predicted", "observed", "if independent"], rows)


def laws_table(laws: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    found = laws["gradients"]
    for name, updates in dict.fromkeys((g["remedy"], g["updates"]) for g in found):
        chosen = [g["rows"] for g in found if (g["remedy"], g["updates"]) == (name, updates)]
        for same in zip(*chosen, strict=True):
            lengths = [
                row["length"] / first[0]["length"] for row, first in zip(same, chosen, strict=True)
            ]
            rows.append([
                name,
                str(updates),
                str(same[0]["batch"]),
                f"{same[0]['positives']:.0f}",
                spread(lengths, 2),
                spread(100 * row["relative_error"] for row in same) + " %",
                spread(100 * row["predicted"]["value"] for row in same) + " %",
            ])
    columns = ["remedy", "updates", "batch", "positives", "length over that at batch 1"]
    return table([*columns, "relative error", "predicted"], rows)


VIEWS = ("train_uncorrected", "train_corrected", "test_corrected", "test_recalibrated")


def calibration_table(study: Study) -> str:
    rows = [
        [
            remedy,
            *(spread(run["calibration"][view]["value"] for run in study.of(remedy)) for view in VIEWS),
        ]
        for remedy in study.remedies
    ]
    return table(["remedy", *(view.replace("_", " loci, ") for view in VIEWS)], rows)


def controlled_table(controlled: dict[str, Any]) -> str:
    names = ("posterior", "as fitted", "corrected", "offset", "weighted")
    rows = [
        [
            row["seen"],
            f"{row['centred']:.0%}",
            *(f"{row[n]['mean']:.3f} +- {row[n]['half_width']:.3f}" for n in names),
        ]
        for row in controlled["rows"]
    ]
    return table(["what the model sees", "centred", *names], rows)


def of_density(study: Study, _: dict[str, Any]) -> tuple[str, str]:
    if not (plain := study.of("plain", 16)):
        return OPEN, ""
    seen = plain[0]["expected_positives"]["predicted"] / 16
    text = f"{plain[0]['positive_fraction']:.2%} of positions, {seen:.1f} sites in a plain window"
    return "false here", text


def of_background(study: Study, _: dict[str, Any]) -> tuple[str, str]:
    shares = [study.signal("mass_share", "init", name) for name in ("plain", "prior-bias")]
    if not all(shares):
        return OPEN, ""
    after = study.signal("mass_share", "now", "prior-bias")
    plain, prior = (f"{100 * np.mean(x):.2g} %" for x in shares)
    text = f"positives' share of the gradient on the logits at first: {plain} with a plain head,"
    text += f" {prior} with a head at the prior; {100 * np.mean(after):.2g} % at the end of that"
    return "conditional: on the initial bias", text


def of_dilution(study: Study, _: dict[str, Any]) -> tuple[str, str]:
    rows = {b: study.of("plain", b) for b in study.batches}
    if len(rows) < 2 or not all(rows.values()):
        return OPEN, ""
    each = (
        f"{np.mean([run['expected_positives']['observed'] for run in found]) / b:.2f} at {b}"
        for b, found in rows.items()
    )
    return "false", f"sites drawn in a window, by batch: {', '.join(each)}"


def of_magnitude(study: Study, laws: dict[str, Any]) -> tuple[str, str]:
    if not (found := laws.get("gradients")):
        return OPEN, "run laws.py"
    lengths = [g["rows"][-1]["length"] / g["rows"][0]["length"] for g in found]
    low, high = bounds(lengths)
    last = study.metric("average_precision", "biased+prior-bias", 64)
    updates = study.of("biased+prior-bias", 64)[0]["windows"] // 64
    text = f"length of the positives' gradient at batch 64 over that at 1: {spread(lengths, 2)};"
    text += f" average precision after {updates} updates of 64: {spread(last)}"
    return ("false" if low > 0.5 and high < 2 else OPEN), text


def of_every_window(study: Study, laws: dict[str, Any]) -> tuple[str, str]:
    runs = study.of("biased") + study.of("biased+prior-bias")
    if not runs:
        return OPEN, ""
    without = spread((100 * run["windows_without"]["observed"] for run in runs), 1)
    predicted = 100 * runs[0]["windows_without"]["predicted"]
    return "false here", f"{without} % of windows hold no site, {predicted:.1f} % predicted"


def of_share(study: Study, _: dict[str, Any]) -> tuple[str, str]:
    if not (runs := study.of("biased") + study.of("biased+prior-bias")):
        return OPEN, ""
    return "false here", f"{runs[0]['positive_fraction']:.2%} positives with half the windows centred"


def of_four_hundred(study: Study, _: dict[str, Any]) -> tuple[str, str]:
    if not (runs := study.of("biased", 16) + study.of("biased+prior-bias", 16)):
        return OPEN, ""
    seen = spread((run["expected_positives"]["observed"] for run in runs), 0)
    predicted = runs[0]["expected_positives"]["predicted"]
    return "false here", f"{seen} sites in an update of 16, {predicted:.0f} predicted"


def of_free_fix(study: Study, _: dict[str, Any]) -> tuple[str, str]:
    gains = study.gain("biased+prior-bias", "prior-bias")
    if len(gains) < 2:
        return OPEN, ""
    runs = study.of("biased+prior-bias")
    raw = spread((run["calibration"]["train_uncorrected"]["value"] for run in runs), 2)
    cured = spread((run["calibration"]["train_corrected"]["value"] for run in runs), 2)
    text = f"average precision gained over the prior alone {spread(gains)}; mean probability over the"
    text += f" share on training loci {raw}, corrected {cured}"
    return "conditional: probabilities need correction", text


def of_focal(p: float, claimed: float) -> Callable[[Study, dict[str, Any]], tuple[str, str]]:
    def verdict(_: Study, __: dict[str, Any]) -> tuple[str, str]:
        factor = focal_gradient_factor(p, 2)
        text = f"by arithmetic, not by this data: gradient x {factor:.3g}, loss x {(1 - p) ** 2:.3g}"
        return ("false" if abs(factor / claimed - 1) > 0.1 else "holds"), text

    return verdict


def of_weights(study: Study, _: dict[str, Any]) -> tuple[str, str]:
    gains = study.gain("weights", "focal")
    if len(gains) < 2:
        return OPEN, ""
    low, high = bounds(gains)
    better = "weights" if low > 0 else "focal loss" if high < 0 else "neither"
    text = f"by definition; average precision of weights less focal, all batches: {spread(gains)}"
    return "holds", f"{text}: {better} is better here"


def of_hundred(study: Study, laws: dict[str, Any]) -> tuple[str, str]:
    found: list[str] = []
    for name in ("prior-bias", "biased+prior-bias"):
        runs = study.of(name)
        for stage, words in zip(STAGES, ("at first", "at the end"), strict=True):
            scales = study.signal("noise_scale", stage, name)
            if scales and runs:
                each = runs[0]["expected_positives"]["predicted"] / runs[0]["batch"]
                found.append(f"{(np.mean(scales) * each / 100) ** 0.5:.0%} {words} ({name})")
    if not found:
        return OPEN, ""
    text = "error of the positives' gradient with 100 of them in an update: " + ", ".join(found)
    return "conditional: on task and stage", text


CLAIMS: tuple[tuple[str, str, Callable[[Study, dict[str, Any]], tuple[str, str]]], ...] = (
    ("C19", "a window of 5001 holds about 50 splice sites, 1 %", of_density),
    ("C20", "99 % of the gradient comes from the background", of_background),
    ("C21", "a larger batch dilutes the positives", of_dilution),
    ("C22", "a site's signal shrinks as 1/B; the optimizer may not react", of_magnitude),
    ("C23", "centring half of the windows gives every window a site", of_every_window),
    ("C24", "that makes about 2.5 % positives", of_share),
    ("C25", "16 such windows hold about 400 sites", of_four_hundred),
    ("C26", "biased sampling is a free fix", of_free_fix),
    ("C27", "focal loss: at p = 0.99 1e-4 of the gradient is left", of_focal(0.99, 1e-4)),
    ("C28", "focal loss: at p = 0.3 0.49 of it is left", of_focal(0.3, 0.49)),
    ("C29", "weights amplify all positives equally, less adaptive than focal loss", of_weights),
    ("C30", "more than 100 positives in an update give a stable gradient", of_hundred),
)


def main() -> None:
    study, laws, controlled = Study(load("study").get("runs", [])), load("laws"), load("calibration")
    seeds = sorted({run["seed"] for run in study.runs})
    print(f"{len(study.runs)} runs; {len(seeds)} seeds; mean +- 90 % interval over seeds.\n")
    if study.runs:
        print("Average precision on the other loci:\n\n" + precision_table(study) + "\n")
        print("Average precision gained, paired:\n\n" + gain_table(study) + "\n")
        print("The positives' gradient:\n\n" + signal_table(study) + "\n")
        print("Mean probability over the share of sites:\n\n" + calibration_table(study) + "\n")
    if controlled:
        print("The same where the truth is known:\n\n" + controlled_table(controlled) + "\n")
    if laws:
        print("Sites in an update:\n\n" + counts_table(laws) + "\n")
        print("Error of the positives' gradient:\n\n" + laws_table(laws) + "\n")
    for name in ("planned", "large_net"):
        if found := load(name):
            runs = found.get("runs", [found])
            rows = [
                [
                    str(run.get("by", f"{found.get('parameters', 0):,} parameters")),
                    f"{run['updates']:,}",
                    *(f"{run['metrics'][f'average_precision_{k}']:.3f}" for k in ("acceptor", "donor")),
                ]
                for run in runs
            ]
            print(table([f"{name}", "updates", "acceptor", "donor"], rows) + "\n")
    rows = [[key, claim, *verdict(study, laws)] for key, claim, verdict in CLAIMS]
    print(table(["claim", "says", "verdict", "numbers"], rows))


if __name__ == "__main__":
    main()
