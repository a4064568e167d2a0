"""plan.toml: a reason above every value, and the line of whatever an editor got wrong."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import known
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Constants, Recipe
from rightbatch.plan.planner import make_plan
from rightbatch.plan.toml import format_plan, read_plan, write_plan

EVIDENCE = {"decisions", "plateau", "tolerance", "predicted", "candidates", "notes", "guards", "doubts"}
EVIDENCE |= {"memory_limit_bytes", "spec", "options"}


def planned(**changes: Any) -> Plan:
    facts = known.facts(recipe=known.facts().recipe.replace(**changes))
    return make_plan(facts, known.measurements(task=facts), "time")


def settings_of(plan: Plan) -> dict[str, Any]:
    """All but the evidence, which lies in plan.json."""
    return plan.model_dump(exclude=EVIDENCE)


def broken(tmp_path: Path, old: str, new: str) -> Path:
    """A plan.toml with one edit."""
    path = tmp_path / "plan.toml"
    text = format_plan(planned())
    assert len(re.findall(old, text, re.MULTILINE)) == 1
    path.write_text(re.sub(old, new, text, flags=re.MULTILINE))
    return path


def line_of(path: Path, start: str) -> int:
    lines = path.read_text().splitlines()
    return next(n for n, line in enumerate(lines, start=1) if line.startswith(start))


def test_a_plan_reads_back_with_every_setting(tmp_path: Path) -> None:
    plan = planned(weight_decay=0.01, momentum=0.9, clip_norm=1.0, schedule="cosine")
    write_plan(tmp_path / "plan.toml", plan)
    assert settings_of(read_plan(tmp_path / "plan.toml")) == settings_of(plan)
    text = (tmp_path / "plan.toml").read_text()
    assert f"#   rightbatch train {plan.spec} --plan plan.toml" in text


def test_every_value_stands_under_a_comment_and_the_batch_comes_first() -> None:
    lines = format_plan(planned(weight_decay=0.01)).splitlines()
    values = [n for n, line in enumerate(lines) if line and not line.startswith("#")]
    assert all(lines[n - 1].startswith("#") for n in values)
    keys = [lines[n].split(" = ")[0] for n in values]
    assert keys.index("global_batch_size") < keys.index("optimizer")
    shared = [key in Constants.model_fields for key in keys]
    assert shared == sorted(shared)


def test_a_comment_says_how_the_value_is_known_and_why() -> None:
    text = format_plan(planned())
    rate = next(d for d in planned().decisions if d.name == "learning_rate")
    comment = text.split("\nlearning_rate =")[0].split("\n\n")[-1]
    plain = " ".join(line.removeprefix("#").strip() for line in comment.splitlines())
    assert plain == f"derived: {rate.reason} [{rate.rule}; {rate.source}]"
    assert max(map(len, text.splitlines())) <= 104


def test_notes_stand_at_the_top() -> None:
    text = format_plan(planned().replace(notes=("mind the gap",)))
    assert "# Note: mind the gap" in text.split("\n\n")[0]


@pytest.mark.parametrize(
    "nasty", ["two\nlines = 1", "tab\there", 'a "quote" \\ [x]', "\x7f\x01", "# = é"]
)
def test_no_name_or_note_breaks_the_file(tmp_path: Path, nasty: str) -> None:
    today = Recipe(lr=0.1, batch_size=8, epochs=1)
    write_plan(tmp_path / "plan.toml", Plan.from_recipe(today, task=nasty, notes=(nasty,)))
    assert read_plan(tmp_path / "plan.toml").task == nasty


def test_a_plan_of_no_task_or_planner_is_written_and_read(tmp_path: Path) -> None:
    plan = Plan.from_recipe(Recipe(optimizer="sgd", lr=1e-5, batch_size=8, steps=10))
    write_plan(tmp_path / "plan.toml", plan)
    assert read_plan(tmp_path / "plan.toml") == plan
    assert "How to train this task" in (tmp_path / "plan.toml").read_text()


def test_an_edited_value_is_read(tmp_path: Path) -> None:
    path = broken(tmp_path, "^learning_rate = .*", "learning_rate = 1")
    assert read_plan(path).learning_rate == 1.0


@pytest.mark.parametrize(
    ("old", "new", "start", "message"),
    [
        ("^learning_rate =", "learning_rat =", "learning_rat ", r"(?s:.*) mean `learning_rate`"),
        ("^micro_batch_size = .*", 'micro_batch_size = "all"', "micro", "micro_batch_size = 'all'"),
        ("^learning_rate = .*", "learning_rate = true", "learning", "learning_rate = True; need a"),
        ("^learning_rate = .*", '"learning_rate" = -1', '"learning', "learning_rate = -1; need"),
        ("^schedule = .*", 'schedule = "stairs"', "schedule", "need 'constant', 'cosine', 'linear'"),
        ("^global_batch_size = .*", "global_batch_size = 7", "global", "global_batch_size = 7, but"),
        ("^epochs = .*", "epochs = 1\nsteps = 5", "epochs", "exactly one of the two"),
        ("^schema_version = .*", "schema_version = 2", "schema", "schema_version 2; need"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_its_line(
    tmp_path: Path, old: str, new: str, start: str, message: str
) -> None:
    path = broken(tmp_path, old, new)
    where = re.escape(f"{path}:{line_of(path, start)}")
    with pytest.raises(InvalidInputError, match=f"^{where}[: ].*{message}"):
        read_plan(path)


def test_broken_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    path = broken(tmp_path, "^schedule = .*", "schedule = constant")
    where = re.escape(f"{path}:{line_of(path, 'schedule')}")
    with pytest.raises(InvalidInputError, match=f"^{where}: .*need TOML"):
        read_plan(path)
    path.write_text("schedule = [")
    with pytest.raises(InvalidInputError, match=f"^{re.escape(str(path))}.*need TOML"):
        read_plan(path)


def test_a_missing_value_is_named(tmp_path: Path) -> None:
    path = broken(tmp_path, "^learning_rate = .*", "")
    with pytest.raises(InvalidInputError, match=r"no `learning_rate`.*\n.*add learning_rate = "):
        read_plan(path)


@pytest.mark.parametrize("text", ["", "learning_rate = 1\n"])
def test_a_file_without_a_version_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(InvalidInputError, match="schema_version None"):
        read_plan(tmp_path / "plan.toml")


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot read .*need a plan.toml") as caught:
        read_plan(tmp_path / "none.toml")
    assert "rightbatch plan TASK" in caught.value.hint
    (tmp_path / "plan.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInputError, match=r"cannot read .*decode"):
        read_plan(tmp_path / "plan.toml")


def test_the_file_is_plain_toml() -> None:
    values = tomllib.loads(format_plan(planned(betas=(0.9, 0.999))))
    assert values["betas"] == [0.9, 0.999]
    assert values["checkpointing"] is False
