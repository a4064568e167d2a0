"""Tables as a terminal shows them."""

import io

from rich.console import Console

import records
from rightbatch.report.tables import Table, today_text
from rightbatch.report.terminal import decision_table, render


def drawn(table: Table, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False)
    console.print(render(table))
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_words_stand_to_the_left_and_numbers_to_the_right() -> None:
    table = Table(
        columns=("name", "value"), rows=(("a", "1"), ("long", "1,000")), words=frozenset({"name"})
    )
    lines = [line.rstrip() for line in drawn(table).splitlines() if line.strip()]
    assert lines[-2:] == [" a         1", " long  1,000"]


def test_brackets_in_a_reason_are_shown_and_not_read_as_markup() -> None:
    assert "[bold]" in drawn(Table(columns=("why",), rows=(("[bold]",),), words=frozenset({"why"})))


def test_no_word_of_a_heading_is_cut_in_two() -> None:
    owners = ("parameters", "gradients", "optimizer state", "inputs", "activations", "temporaries")
    columns = ("micro-batch", "peak", "low", "high", *owners)
    text = drawn(table := Table(columns=columns, rows=(("1,000 KiB",) * len(columns),)))
    assert all(word in text for column in columns for word in column.split())
    assert "temp" in drawn(table, width=80)  # narrower still, headings fold, but no column is lost


def test_a_decision_shows_today_beside_the_plan_with_its_evidence_and_reason() -> None:
    plan = records.plan()
    table = decision_table(plan, records.task_facts().recipe)
    assert table.columns == ("decision", "today", "planned", "evidence", "why")
    assert [row[0] for row in table.rows] == [decision.name for decision in plan.decisions]
    batch = next(row for row in table.rows if row[0] == "global_batch_size")
    assert batch[1] == "32"
    assert batch[3] in {"measured", "derived", "assumed"}


def test_where_the_rate_drops_today_is_what_the_recipe_says() -> None:
    recipe = records.task_facts().recipe.replace(
        schedule="step", decay_at=(20_000, 30_000), decay_factor=0.1, betas=(0.9, 0.99)
    )
    assert today_text("decay_at", recipe) == "20,000, 30,000"
