"""What a remedy's runs come to, against the reference and at a level that holds for all together."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rightbatch.core.comparison import Comparison, CompletedRun, Remedy, RemedyResult, Side, SideName
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Recipe
from rightbatch.core.run import Outcome
from rightbatch.report.validation_text import remedies_table, remedy_lines
from rightbatch.validate.compare import compare, comparison_lines
from rightbatch.validate.remedy_verdict import each_level, judge_remedy
from rightbatch.validate.statistics import LEVEL, paired_difference, seeds_until, share_closed

PLAN = Plan.from_recipe(Recipe(lr=0.1, batch_size=8, epochs=1))
REMEDY = Remedy(name="longer training", change="more updates", source="hoffer2017", plan=PLAN)
NOISE = [0.0005, -0.0005, 0.0004, -0.0004, 0.0]
REFERENCE = [0.97, 0.96, 0.975, 0.965, 0.97]
PLAIN = [0.95, 0.94, 0.955, 0.945, 0.95]


def runs(side: SideName, values: Sequence[float | None], name: str = "accuracy") -> list[CompletedRun]:
    return [
        CompletedRun(
            side=side,
            seed=seed,
            outcome=Outcome.DIVERGED if value is None else Outcome.FINISHED,
            message="",
            examples=1000,
            updates=10,
            seconds=2.0,
            metrics={} if value is None else {name: value},
            train_metrics={},
            examples_to_target=None,
            seconds_to_target=None,
            run_dir=Path(f"runs/{side}-seed{seed}"),
        )
        for seed, value in enumerate(values)
    ]


def plain(name: str = "accuracy", *, higher_is_better: bool = True) -> Comparison:
    sign = 1 if higher_is_better else -1
    candidate = [sign * (a + b) for a, b in zip(PLAIN, NOISE, strict=True)]
    return compare(
        task="t",
        metric=name,
        higher_is_better=higher_is_better,
        target=None,
        matched_by="examples",
        candidate=Side(name="batch 64", plan=PLAN, rate_from=""),
        reference=Side(name="today's recipe", plan=PLAN, rate_from=""),
        margin=0.005,
        num_valid_examples=0,
        runs=[
            *runs("candidate", candidate, name),
            *runs("reference", [sign * value for value in REFERENCE], name),
        ],
    )


def judged(shift: float, spread: float = 1.0, level: float = 0.99) -> RemedyResult:
    values = [a + shift + spread * b for a, b in zip(REFERENCE, NOISE, strict=True)]
    return judge_remedy(REMEDY, runs("candidate", values), plain(), level=level)


@pytest.mark.parametrize(
    ("shift", "spread", "verdict"),
    [
        (0.0, 1, "closed"),
        (-0.003, 1, "closed"),
        (0.02, 5, "closed"),  # better is no loss, however wide the interval
        (-0.02, 1, "not closed"),
        (-0.008, 1, "not closed"),
        (-0.003, 10, "undecided"),
        (-0.005, 1, "not closed"),
    ],
)
def test_a_gap_is_closed_where_no_more_than_the_margin_is_left(
    shift: float, spread: float, verdict: str
) -> None:
    found = judged(shift, spread)
    assert found.verdict == verdict
    assert found.difference is not None
    assert found.difference.value == pytest.approx(shift)


def test_where_lower_is_better_the_same_holds_mirrored() -> None:
    before = plain("loss", higher_is_better=False)
    for shift, verdict in ((0.0, "closed"), (0.02, "not closed"), (-0.02, "closed")):
        values = [shift - a + b for a, b in zip(REFERENCE, NOISE, strict=True)]
        found = judge_remedy(REMEDY, runs("candidate", values, "loss"), before, level=0.99)
        assert (before.verdict, found.verdict) == ("worse", verdict)


def test_a_gain_is_told_apart_from_a_closed_gap() -> None:
    found = judged(-0.01)
    assert found.verdict == "not closed"
    assert "still worse, and better than without it by +0.0100" in found.reason
    assert found.share_closed is not None
    assert found.share_closed.value == pytest.approx(0.5)
    assert "better than without it" not in judged(-0.02).reason


def test_the_level_of_each_interval_makes_all_of_them_hold_together() -> None:
    assert each_level(1) == pytest.approx(LEVEL)
    assert 1 - each_level(4) == pytest.approx(0.05 / 4)
    wide, narrow = judged(0.0, level=each_level(5)), judged(0.0, level=LEVEL)
    for one in (wide, narrow):
        assert one.difference is not None
        assert one.difference.low is not None
    assert wide.difference.low < narrow.difference.low  # type: ignore[union-attr, operator]


def test_of_four_remedies_that_leave_a_margin_one_is_called_closed_in_at_most_one_study_of_forty() -> (
    None
):
    rng, studies, wrong = np.random.default_rng(0), 1500, 0
    for _ in range(studies):
        differences = rng.normal(-0.005, 0.004, (4, 5))
        found = [paired_difference(list(row), each_level(4)) for row in differences]
        wrong += any(one is not None and one.low is not None and one.low > -0.005 for one in found)
    assert wrong / studies < 0.025 + 3 * math.sqrt(0.025 / studies)


def test_runs_that_diverge_are_counted() -> None:
    def with_losses(*values: float | None) -> RemedyResult:
        return judge_remedy(REMEDY, runs("candidate", values), plain(), level=0.99)

    always = with_losses(None, None, None)
    assert (always.verdict, always.reason) == ("not closed", "3 of 3 runs diverged")
    assert (always.difference, always.examples_ratio, always.share_closed) == (None, None, None)
    once = with_losses(0.97, None, 0.97)
    assert once.verdict == "undecided"
    assert "no fair sample" in once.reason
    assert once.more_seeds is None


def test_a_reference_that_sometimes_diverges_leaves_a_remedy_undecided() -> None:
    lost: list[float | None] = [None, None, None, *REFERENCE[3:]]
    before = plain()
    ours = [run for run in before.runs if run.side == "candidate"]
    fields = {name: getattr(before, name) for name in ("task", "metric", "higher_is_better", "target")}
    fields |= {name: getattr(before, name) for name in ("matched_by", "candidate", "margin")}
    before = compare(
        **fields,
        reference=before.reference,
        num_valid_examples=0,
        runs=[*ours, *runs("reference", lost)],
    )
    for values in (REFERENCE, [None] * 5):
        found = judge_remedy(REMEDY, runs("candidate", values), before, level=0.99)
        assert (before.verdict, found.verdict, found.more_seeds) == ("undecided", "undecided", None)
        assert "and 3 of the reference diverged" in found.reason
    lines = comparison_lines(before)
    assert "No number of seeds is foreseen to decide it while runs diverge." in lines


def test_a_remedy_without_runs_says_whether_it_applies() -> None:
    left = judge_remedy(REMEDY, [], plain(), level=0.99)
    assert (left.verdict, left.difference, left.examples) == ("not run yet", None, None)
    never = REMEDY.replace(plan=None, change="the model has no BatchNorm")
    found = judge_remedy(never, [], plain(), level=0.99)
    assert (found.verdict, found.reason) == ("does not apply", "the model has no BatchNorm")
    assert judge_remedy(REMEDY, runs("candidate", [0.97]), plain(), level=0.9).verdict == "undecided"


def test_seeds_foreseen_for_a_remedy_decide_it_at_the_same_spread() -> None:
    found = judged(-0.003, 10)
    assert found.more_seeds
    more = 5 + found.more_seeds
    left = [-0.003 + 10 * value for value in NOISE]
    assert seeds_until(0.003, left, 0.99) == found.more_seeds
    spread = float(np.std(left, ddof=1))
    enough = paired_difference([-0.003 + spread, -0.003 - spread] * (more // 2 + 1), 0.99)
    assert enough is not None
    assert enough.high is not None
    assert enough.high < 0


def test_the_share_that_is_closed_comes_with_fiellers_interval() -> None:
    rng = np.random.default_rng(1)
    before = rng.normal(-0.03, 0.006, 8)
    after = 0.4 * before + rng.normal(0.0, 0.002, 8)
    found = share_closed(list(after), list(before))
    assert found is not None
    inside: list[float] = []
    for share in np.linspace(0.3, 0.9, 3001):  # which shares cannot be refused, one by one
        rest = paired_difference(list(after - (1 - share) * before))
        assert rest is not None
        assert rest.low is not None
        assert rest.high is not None
        if rest.low <= 0 <= rest.high:
            inside.append(float(share))
    assert (found.low, found.high) == pytest.approx((min(inside), max(inside)), abs=3e-4)


def test_a_gap_that_is_not_shown_leaves_the_share_open() -> None:
    found = share_closed([0.01, -0.01, 0.0], [0.02, -0.03, 0.0])
    assert found is not None
    assert (found.low, found.high) == (None, None)
    assert share_closed([0.01, 0.02], [0.01, -0.01]) is None


def test_the_words_name_what_closed_the_gap_what_it_costs_and_at_which_level() -> None:
    before = plain()
    from rightbatch.core.comparison import Remedies

    results = (
        judged(0.0),
        judged(-0.003, 10),
        judged(-0.02),
        judged(0.0).replace(verdict="not run yet"),
    )
    found = before.replace(remedies=Remedies(family_level=0.95, level=0.99, results=results))
    text = " ".join(remedy_lines(found))
    assert text.startswith("Closed the gap: longer training (1 x the examples, 1 x the time).")
    assert "Undecided: longer training, accuracy -0.0030" in text
    assert "more seed(s) would decide" in text
    assert "Not closed: longer training" in text
    assert "hold together with 95 %: each is at 99 %" in text
    table = remedies_table(found)
    assert [row[2] for row in table.rows] == ["closed", "undecided", "not closed", "not run yet"]
    none = found.replace(remedies=Remedies(family_level=0.95, level=0.99, results=results[1:]))
    assert remedy_lines(none)[0] == "No remedy is shown to close the gap."
    assert remedy_lines(before) == []
    never = results[0].replace(remedy=REMEDY.replace(plan=None))
    vain = found.replace(remedies=Remedies(family_level=0.95, level=0.95, results=(never,)))
    assert remedy_lines(vain) == ["None of the remedies applies; the table says why."]
