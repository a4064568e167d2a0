"""The figure and the table of time against examples."""

import known
from rightbatch.plan.planner import make_plan
from rightbatch.report.front import front_table, plot_front

MEASURED = known.measurements(known.Laws(step_seconds=(1e-4, 1e-4), optimizer_seconds=1e-3))
PLAN = make_plan(MEASURED.task, MEASURED, "time")


def test_the_front_is_one_falling_line_and_the_others_lie_off_it() -> None:
    figure = plot_front(PLAN, today=32)
    by_name = {trace.name: trace for trace in figure.data}
    line = by_name["no other is better in both"]
    assert list(line.x) == sorted(line.x)
    assert list(line.y) == sorted(line.y, reverse=True)
    beaten = by_name["slower for more examples"]
    assert len(line.x) + len(beaten.x) == len(PLAN.candidates)
    assert (list(by_name["today: 32"].x), list(by_name["today: 32"].y)) == ([1], [1])
    assert f"plan: {PLAN.global_batch_size}" in by_name


def test_the_table_holds_the_front_with_the_quickest_first() -> None:
    table = front_table(PLAN, today=32)
    on_front = [c for c in PLAN.candidates if c.on_front]
    assert len(table.rows) == len(on_front)
    quickest = min(PLAN.candidates, key=lambda c: c.seconds_ratio.value)
    assert table.rows[0][0] == f"{quickest.global_batch_size:,}"
    named = {name: row[0] for row in table.rows for name in row[-1].split(", ")}
    assert named["plan"] == f"{PLAN.global_batch_size:,}"
    assert named.get("today", "32") == "32"
