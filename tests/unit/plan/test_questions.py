import re
from pathlib import Path

import pytest

import known
from records import measurements
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.sources import SOURCES
from rightbatch.fit.models import fit_models
from rightbatch.plan.limits import Limits
from rightbatch.plan.planner import make_plan
from rightbatch.plan.questions import answer_question, find_question, questions, use_cases


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("just use the largest batch that fits?", "largest"),
        ("Is the biggest batch size that fits in GPU memory best?", "largest"),
        ("Larger batch = faster training", "faster"),
        ("double lr when I double batch", "double_rate"),
        ("Does batch size affect accuracy?", "only_speed"),
        ("small batches generalise better", "sharp_minima"),
        ("Gradient accumulation is slow", "accumulation_slow"),
        ("accumulation doubles training time", "accumulation_slow"),
        ("gradient accumulation is the same as large batch", "accumulation_same"),
        ("mixed precision speeds up training", "mixed_precision"),
        ("does gradient accumulation change results?", "accumulation_differs"),
        ("do i need warmup", "no_warmup"),
        ("should I use the batch from the GPT paper", "paper"),
        ("fine-tuning works same as pre-training", "fine_tuning"),
        ("my training diverges after doubling batch", "diverges"),
        ("rare positives large batch", "sparse"),
        ("does gradient checkpointing slow training?", "checkpointing_slow"),
        ("does checkpointing speed up training?", "checkpointing"),
    ],
)
def test_a_saying_is_found_in_other_words(text: str, question: str) -> None:
    assert find_question(text)[0].id == question


def test_every_saying_finds_its_own_question() -> None:
    for question in questions():
        for said in question.said:
            assert find_question(said) == (question, said)


@pytest.mark.parametrize("text", ["how do I bake bread", "", "batch", "???"])
def test_a_question_about_something_else_is_refused_with_the_nearest_ones(text: str) -> None:
    with pytest.raises(InvalidInputError, match="nearest are: "):
        find_question(text)


def test_every_question_has_a_known_source_and_a_claim() -> None:
    for question in questions():
        assert question.source in SOURCES
        assert question.claims
        assert all(re.fullmatch(r"C\d\d+", claim) for claim in question.claims)
        assert question.command.startswith("rightbatch ")
    assert len({question.id for question in questions()}) == len(questions())


def test_the_numbers_are_those_of_the_measurements() -> None:
    measured = measurements()
    plan = make_plan(measured.task, measured)
    largest = max(c.global_batch_size for c in plan.candidates if c.accumulation_steps == 1)
    reply = answer_question("just use the largest batch that fits", measured, plan)
    assert f"{largest:,}, is predicted to take" in str(reply.measured)
    numbered = [question for question in questions() if question.number]
    for question in numbered:
        said = answer_question(question.said[0], measured, plan).measured
        assert said is None or "digits" in said
    assert sum(answer_question(q.said[0], measured, plan).measured is not None for q in numbered) >= 5


def test_the_rate_is_the_one_that_a_plan_at_twice_the_batch_would_take() -> None:
    measured = known.measurements()  # of SGD, whose rate saturates with the critical batch size
    plan = make_plan(measured.task, measured, limits=Limits(max_batch_size=64), objective="time")
    assert plan.global_batch_size == 64
    said = str(answer_question("the linear scaling rule", measured, plan).measured)
    assert f"becomes {plan.learning_rate:.4g} at 64" in said


def test_accumulation_is_priced_from_the_step_times() -> None:
    measured = measurements()
    said = str(answer_question("gradient accumulation is slow", measured, None).measured)
    # 32 examples: 210 + 32 * 2.6 + 160 us whole, 4 * (210 + 8 * 2.6) + 160 us in four.
    whole, split = 210 + 32 * 2.6 + 160, 4 * (210 + 8 * 2.6) + 160
    found = float(str(re.search(r"4 x 8, ([\d.]+) x", said)[1]))  # pyright: ignore[reportOptionalSubscript]
    assert found == pytest.approx(split / whole, rel=0.1)


def test_a_slowdown_by_checkpointing_is_not_denied() -> None:
    assert find_question("gradient checkpointing slows training down")[0].verdict.startswith("yes")
    assert find_question("checkpointing speeds training up")[0].verdict == "no"


def test_pieces_that_do_not_add_up_to_the_batch_are_not_priced() -> None:
    facts = known.facts(recipe=known.facts().recipe.replace(batch_size=30))
    measured = known.measurements(task=facts)
    assert answer_question("gradient accumulation is slow", measured, None).measured is None


def test_progress_of_a_step_is_that_of_the_table_of_gains() -> None:
    decided = known.measurements()
    steps = fit_models(decided).steps
    assert steps is not None
    said = str(answer_question("gradients get smaller with a larger batch", decided, None).measured)
    assert f"critical batch size about {steps.critical_batch_size:.0f}" in said
    assert f"a step of 32 makes {1 / (1 + steps.critical_batch_size / 32):.0%}" in said
    lost = tuple(known.sample(s, 300.0) for s in (-1.0, 1.2, -0.4, 0.9, 0.1, -0.2))
    undecided = known.measurements(gradients=lost)
    steps = fit_models(undecided).steps
    assert steps is not None
    said = str(answer_question("gradients get smaller with a larger batch", undecided, None).measured)
    assert "the noise scale over the pilot is at least" in said
    assert f"a step of 32 makes at most {1 / (1 + steps.low / 32):.0%}" in said


def test_without_measurements_nothing_is_said_to_be_measured() -> None:
    assert answer_question("just use the largest batch that fits", None, None).measured is None


def test_every_use_case_sets_options_that_exist() -> None:
    from rightbatch.cli.advise import NOTHING

    for case in use_cases().values():
        assert set(case.implied) <= {"objective", *NOTHING.__slots__}, case.name
        assert case.claims
    assert len(use_cases()) == 10


def test_claims_named_are_written_as_keys() -> None:
    folder = Path(__file__).parents[3] / "src/rightbatch/plan"
    for name in ("questions.toml", "use_cases.toml"):
        assert "claims = [" in (folder / name).read_text(encoding="utf-8")
