"""Whatever a record holds, its file gives back; whatever is not in it is refused."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import known
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Candidate, Decision, Interval, Plan, Prediction
from rightbatch.core.recipe import Constants, LoaderOptions, Recipe, Target
from rightbatch.core.record import Record
from rightbatch.core.run import Evaluation, Outcome, Run
from rightbatch.core.samples import GradientSample, Measurements, PilotPoint
from rightbatch.core.store import read_record, write_record
from rightbatch.plan.toml import format_plan, read_plan

FINITE = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
FRACTION = st.floats(0, 1, exclude_max=True)
COUNT = st.integers(1, 2**40)
TEXT = st.text(st.characters(codec="utf-8"))
METRICS = st.dictionaries(TEXT, FINITE, max_size=3)
LENGTHS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"epochs": POSITIVE}), st.fixed_dictionaries({"steps": COUNT})
)

CONSTANTS: dict[str, Any] = {
    "optimizer": TEXT,
    "momentum": st.none() | FRACTION,
    "betas": st.none() | st.tuples(FRACTION, FRACTION),
    "eps": st.none() | POSITIVE,
    "weight_decay": st.none() | st.floats(0, allow_infinity=False),
    "schedule": st.sampled_from(["constant", "cosine", "linear"]),
    "warmup_examples": st.integers(0, 2**40),
    "clip_norm": st.none() | POSITIVE,
    "ema_decay": st.none() | FRACTION,
    "precision": st.sampled_from(["fp32", "bf16"]),
    "sampler": st.sampled_from(["shuffle", "sequential", "replacement"]),
}
TARGETS = st.builds(Target, TEXT, FINITE, st.booleans())
INTERVALS = st.builds(Interval, value=FINITE, low=st.none() | FINITE, high=st.none() | FINITE)
DECISIONS = st.builds(
    Decision,
    name=st.sampled_from(sorted(Plan.model_fields)) | TEXT,
    value=st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    evidence=st.sampled_from(["measured", "derived", "assumed"]),
    rule=TEXT,
    source=TEXT,
    reason=TEXT,
    low=st.none() | FINITE,
    high=st.none() | FINITE,
)
CANDIDATES = st.builds(
    Candidate,
    global_batch_size=COUNT,
    micro_batch_size=COUNT,
    accumulation_steps=COUNT,
    update_seconds=FINITE,
    peak_bytes=COUNT,
    examples_ratio=INTERVALS,
    seconds_ratio=INTERVALS,
    regret=FINITE,
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    values: dict[str, Any] = draw(st.fixed_dictionaries(CONSTANTS)) | draw(LENGTHS)
    return Recipe(**values, lr=draw(POSITIVE), batch_size=draw(COUNT))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    micro, accumulation = draw(st.integers(1, 2**20)), draw(st.integers(1, 2**20))
    values: dict[str, Any] = draw(st.fixed_dictionaries(CONSTANTS)) | draw(LENGTHS)
    return Plan(
        **values,
        task=draw(TEXT),
        global_batch_size=micro * accumulation,
        micro_batch_size=micro,
        accumulation_steps=accumulation,
        learning_rate=draw(POSITIVE),
        warmup_start=draw(st.floats(0, 1)),
        objective=draw(st.sampled_from([None, "time", "balanced"])),
        decisions=tuple(draw(st.lists(DECISIONS, max_size=3))),
        plateau=draw(st.none() | st.tuples(COUNT, COUNT)),
        predicted=draw(
            st.none()
            | st.builds(
                Prediction,
                seconds_to_target_ratio=INTERVALS,
                examples_to_target_ratio=INTERVALS,
                probability_better=FRACTION,
            )
        ),
        candidates=tuple(draw(st.lists(CANDIDATES, max_size=2))),
        memory_limit_bytes=draw(st.none() | COUNT),
        notes=tuple(draw(st.lists(TEXT, max_size=2))),
    )


@st.composite
def measurements(draw: st.DrawFn) -> Measurements:
    sample = st.builds(
        GradientSample,
        examples_seen=COUNT,
        small_batch_size=POSITIVE,
        big_batch_size=COUNT,
        small_sq_norm=FINITE,
        big_sq_norm=FINITE,
        preconditioned_small_sq_norm=st.none() | FINITE,
        preconditioned_big_sq_norm=st.none() | FINITE,
    )
    point = st.builds(PilotPoint, examples_seen=COUNT, loss=FINITE, metrics=METRICS)
    loader = st.builds(
        LoaderOptions,
        num_workers=st.integers(1, 64),
        pin_memory=st.booleans(),
        prefetch_factor=st.none() | COUNT,
    )
    facts = known.facts(
        recipe=draw(recipes()), target=draw(st.none() | TARGETS), loader=draw(loader), name=draw(TEXT)
    )
    return known.measurements(
        task=facts,
        gradients=tuple(draw(st.lists(sample, max_size=2))),
        pilot=tuple(draw(st.lists(point, max_size=2))),
        optimizer_seconds=tuple(draw(st.lists(FINITE, max_size=3))),
        notes=tuple(draw(st.lists(TEXT, max_size=2))),
    )


@st.composite
def runs(draw: st.DrawFn) -> Run:
    evaluation = st.builds(
        Evaluation, examples=COUNT, updates=COUNT, seconds=FINITE, train_loss=FINITE, metrics=METRICS
    )
    return Run(
        task=draw(TEXT),
        outcome=draw(st.sampled_from(Outcome)),
        message=draw(TEXT),
        seed=draw(st.integers(0, 2**63)),
        global_batch_size=draw(COUNT),
        examples=draw(COUNT),
        updates=draw(COUNT),
        seconds=draw(FINITE),
        target=draw(st.none() | TARGETS),
        evaluations=tuple(draw(st.lists(evaluation, max_size=2))),
        run_dir=Path("runs") / "name",
    )


RECORDS = st.one_of(plans(), measurements(), runs())


@settings(deadline=None, max_examples=30)
@given(RECORDS)
def test_a_file_gives_back_an_equal_record(record: Record) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        write_record(path, record)
        assert read_record(path, type(record)) == record


@settings(deadline=None, max_examples=50)
@given(RECORDS)
def test_json_holds_plain_numbers_and_no_infinities(record: Record) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(record.model_dump_json(), parse_constant=refuse)


@settings(deadline=None, max_examples=50)
@given(RECORDS, st.data())
def test_a_misspelt_key_is_refused_with_the_right_one(record: Record, data: st.DataObject) -> None:
    values = json.loads(record.model_dump_json())
    name = data.draw(st.sampled_from([key for key in sorted(values) if key != "schema_version"]))
    values[name + "x"] = values.pop(name)
    with pytest.raises(InvalidInputError, match=f"unknown key `{name}x`.*\n.*did you mean `{name}`"):
        type(record)(**values)


@settings(deadline=None, max_examples=80)
@given(plans())
def test_plan_toml_gives_back_every_setting_under_a_comment(plan: Plan) -> None:
    text = format_plan(plan)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plan.toml"
        path.write_text(text, encoding="utf-8")
        again = read_plan(path)
    evidence = {"decisions", "plateau", "predicted", "candidates", "notes", "memory_limit_bytes"}
    assert again.model_dump(exclude=evidence) == plan.model_dump(exclude=evidence)
    lines = text.split("\n")
    values = [n for n, line in enumerate(lines) if line and not line.startswith("#")]
    assert all(lines[n - 1].startswith("#") for n in values)
    named = {lines[n].split(" = ")[0] for n in values}
    given = {name for name in Constants.model_fields if getattr(plan, name) is not None}
    assert given | {"global_batch_size", "learning_rate"} <= named
