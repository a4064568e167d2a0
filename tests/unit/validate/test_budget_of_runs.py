"""A budget stops new runs and nothing else: what is there is answered, and the same call goes on."""

from pathlib import Path

import pytest

import tiny
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.validate.allowance import Allowance, parse_allowance
from rightbatch.validate.compare import comparison_lines
from rightbatch.validate.session import validate


def test_a_number_of_runs_is_counted_down_and_time_runs_out() -> None:
    two = Allowance(runs=2)
    assert [two.take() for _ in range(4)] == [True, True, False, False]
    assert Allowance().take()
    late = Allowance(seconds=-1.0)
    assert [late.take(), late.take()] == [True, False]  # or a repeated call would never end
    assert Allowance(seconds=60.0).take()


@pytest.mark.parametrize("text", ["0runs", "runs", "1.5runs", "ten", "-3", "5 apples"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="write 20runs, or 10m"):
        parse_allowance(text)


@pytest.mark.parametrize(("text", "found"), [("1run", (1, None)), ("90s", (None, 90.0))])
def test_runs_and_durations_are_told_apart(text: str, found: tuple[int | None, float | None]) -> None:
    assert parse_allowance(text) == found


def test_each_call_goes_on_where_the_budget_of_the_last_one_ended(tmp_path: Path) -> None:
    task = tiny.task()
    whole = validate(task, 16, out=tmp_path / "whole", seeds=3)

    def go_on(runs: int) -> tuple[int, int, int, str]:
        found = validate(task, 16, out=tmp_path / "part", seeds=3, budget_runs=runs)
        assert [run.metrics for run in found.runs] == [
            run.metrics for run in whole.runs[: len(found.runs)]
        ]
        return found.seeds, len(found.runs), found.unfinished_runs, found.verdict

    assert go_on(1) == (0, 1, 5, "undecided")
    assert go_on(2) == (1, 3, 3, "undecided")
    assert go_on(1)[:3] == (2, 4, 2)
    assert go_on(0)[:3] == (2, 4, 2)
    assert go_on(9) == (3, 6, 0, whole.verdict)


def test_a_part_says_that_it_is_one_and_an_odd_run_judges_nothing(tmp_path: Path) -> None:
    found = validate(tiny.task(), 16, out=tmp_path, seeds=3, budget_runs=5)
    assert (found.seeds, len(found.runs)) == (2, 5)
    assert found.difference is not None
    assert found.difference.num_pairs == 2
    assert found.reference_gap is not None
    assert found.reference_gap.num_pairs == 2
    text = " ".join(comparison_lines(found))
    assert "The budget ended before 1 of the runs asked for; the verdict is that of 2 pair(s)" in text
    assert "--seeds" not in text


def test_remedies_are_not_begun_before_the_comparison_is_whole(tmp_path: Path) -> None:
    task = tiny.task()
    first = validate(task, 16, out=tmp_path, seeds=2, budget_runs=3, margin=1e-9, remedy=True)
    assert (first.remedies, first.unfinished_runs) == (None, 1)
    second = validate(task, 16, out=tmp_path, seeds=2, budget_runs=2, margin=1e-9, remedy=True)
    assert second.remedies is not None
    verdicts = {result.remedy.name: result.verdict for result in second.remedies.results}
    assert second.unfinished_runs == 1
    assert verdicts["longer training"] == "undecided"
    assert "runs of remedies" in " ".join(comparison_lines(second))


def test_a_diverged_run_counts_as_made(tmp_path: Path) -> None:
    plan = Plan.from_recipe(tiny.task().recipe, "tiny", learning_rate=1e30)
    found = validate(tiny.task(), plan, out=tmp_path, seeds=2, budget_runs=3)
    assert (found.seeds, found.unfinished_runs, found.verdict) == (1, 1, "undecided")
    found = validate(tiny.task(), plan, out=tmp_path, seeds=2, budget_runs=1)
    assert (found.unfinished_runs, found.verdict) == (0, "worse")
