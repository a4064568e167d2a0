"""What people say about batch sizes, answered: what is known, and what this task's numbers say.

The sayings and their answers are data, in ``questions.toml``; the situations that people ask about,
with what is commonly advised for each, in ``use_cases.toml``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from importlib.resources import files
from typing import Any

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Candidate, Plan
from rightbatch.core.samples import Measurements
from rightbatch.core.units import format_number, format_seconds
from rightbatch.fit.models import Models, fit_models
from rightbatch.fit.steps_model import gains
from rightbatch.plan.decide import move_to
from rightbatch.plan.scaling import move_constants, with_defaults

_CLOSE_ENOUGH = 0.5  # of the best match, below which a question counts as another one


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A saying, its verdict and the command that would settle it."""

    id: str
    said: tuple[str, ...]
    claims: tuple[str, ...]
    """Keys of the claims ledger."""
    verdict: str
    answer: str
    source: str
    """A key of ``core.sources``."""
    command: str
    number: str | None = None
    """Which of this task's numbers belong to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UseCase:
    """A situation people ask about: what is commonly advised, and what is known of it."""

    name: str
    title: str
    common: str
    known: str
    claims: tuple[str, ...]
    implied: dict[str, Any]
    """Options of ``advise`` that the situation implies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A question with what this task's measurements say; None where there are none to say it."""

    question: Question
    said: str
    """The saying of it that is nearest to what was asked."""
    measured: str | None


@cache
def questions() -> tuple[Question, ...]:
    """Every known question, in the order of the file."""
    return tuple(Question(**entry) for entry in _entries("question"))


@cache
def use_cases() -> dict[str, UseCase]:
    """Every known situation by name, in the order of the file."""
    return {entry["name"]: UseCase(**entry) for entry in _entries("use_case")}


def _entries(kind: str) -> list[dict[str, Any]]:
    text = files("rightbatch.plan").joinpath(f"{kind}s.toml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = tomllib.loads(text)[kind]
    return [{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()} for entry in entries]


def find_question(text: str) -> tuple[Question, str]:
    """Find the known question that is nearest to a text in its words, and the saying that is.

    >>> find_question("Should I just use the largest batch that fits in memory?")[1]
    'just use the largest batch that fits'

    Raises:
        InvalidInputError: none is near.
    """
    scored = [
        (_likeness(text, said), question, said) for question in questions() for said in question.said
    ]
    best, question, nearest = max(scored, key=lambda found: found[0])
    if best < _CLOSE_ENOUGH:
        near = sorted(scored, key=lambda found: -found[0])[:3]
        known = "; ".join(dict.fromkeys(found.said[0] for _, found, _ in near))
        need, hint = "a known saying about batch sizes", f"nearest are: {known}"
        raise InvalidInputError(f"question {text!r}", need=need, hint=hint)
    return question, nearest


def answer_question(text: str, measurements: Measurements | None, plan: Plan | None) -> Reply:
    """Answer a saying, with the numbers of an earlier plan's folder where they are given.

    Raises:
        InvalidInputError: no known question is near.
    """
    question, said = find_question(text)
    if measurements is None or question.number is None:
        return Reply(question=question, said=said, measured=None)
    return Reply(
        question=question,
        said=said,
        measured=_NUMBERS[question.number](measurements, fit_models(measurements), plan),
    )


_SMALL = frozenset(
    re.findall(
        r"\w+",
        "a an the is it its i my me you your to of for in on that this and or so be are was do does did"
        " don t s ll can should will just use have has what why with than then when at if",
    )
)

_LARGE = ("max", "maximum", "biggest", "bigger", "larger")
_SYNONYMS = dict.fromkeys(_LARGE, "largest") | {"lr": "rate"}


def _words(text: str) -> set[str]:
    """Stems of the words that carry meaning."""
    lowered = re.sub(r"\blearning rates?\b", "rate", text.lower()).replace("batch size", "batch")
    found: list[str] = re.findall(r"[a-z0-9.]+", lowered)
    words = {_SYNONYMS.get(word, word) for word in found} - _SMALL
    return {re.sub(r"(ing|ed|es|e|s|ly)$", "", word.strip(".")) for word in words}


def _likeness(text: str, said: str) -> float:
    """Share of the saying's words that the text has, and of the text's, with spelling as a tie."""
    asked, known = _words(text), _words(said)
    shared = len(asked & known)
    if shared < 2:  # one word in common, such as "batch", says nothing
        return 0.0
    overlap = 2 * shared / (len(asked) + len(known))
    covered = shared / len(known)
    return (
        0.5 * overlap + 0.4 * covered + 0.1 * SequenceMatcher(None, text.lower(), said.lower()).ratio()
    )


def _largest(measurements: Measurements, models: Models, plan: Plan | None) -> str | None:
    if plan is None or not plan.candidates:
        return None
    whole = [c for c in plan.candidates if c.accumulation_steps == 1]
    largest = max(whole, key=lambda c: c.global_batch_size, default=None)
    chosen = _candidate(plan, plan.global_batch_size)
    if largest is None or chosen is None:
        return None
    ratio = largest.seconds_ratio.value / chosen.seconds_ratio.value
    return (
        f"on {measurements.task.name} the largest batch that was measured and fits,"
        f" {largest.global_batch_size:,}, is predicted to take {ratio:.2g} x the time of"
        f" the planned {plan.global_batch_size:,} to the target"
    )


def _faster(measurements: Measurements, models: Models, plan: Plan | None) -> str | None:
    if models.speed is None:
        return None
    sizes, speed = models.speed.micro_batch_sizes, models.speed
    rates = [speed.examples_per_second(size) for size in sizes]
    best = max(range(len(sizes)), key=rates.__getitem__)
    text = (
        f"on {measurements.task.name} throughput is highest at {sizes[best]:,}"
        f" ({format_number(round(rates[best]))} examples/s) and {format_number(round(rates[-1]))}"
        f" at {sizes[-1]:,}"
    )
    if models.steps is None:
        return text
    today = measurements.task.recipe.batch_size
    more = models.steps.examples_ratio(2 * today, today)
    return f"{text}; twice today's batch of {today:,} needs {more:.2g} x the examples"


def _rate(measurements: Measurements, models: Models, plan: Plan | None) -> str | None:
    facts, recipe = measurements.task, measurements.task.recipe
    move = move_to(2 * recipe.batch_size, facts, models.steps)
    moved, *_ = move_constants(with_defaults(recipe, facts.optimizer_class), recipe.lr, move)
    return (
        f"on {measurements.task.name}, with {measurements.task.optimizer_class}, {recipe.lr:g} at"
        f" {recipe.batch_size:,} becomes {moved.value:.4g} at {2 * recipe.batch_size:,} ({moved.rule})"
    )


def _accumulation(measurements: Measurements, models: Models, plan: Plan | None) -> str | None:
    speed, today = models.speed, measurements.task.recipe.batch_size
    if (
        speed is None
        or today % 4
        or not speed.valid_range[0] <= today // 4 < today <= speed.valid_range[1]
    ):
        return None
    whole = speed.step_seconds(today) + speed.optimizer_seconds
    split = 4 * speed.step_seconds(today // 4) + speed.optimizer_seconds
    return (
        f"on {measurements.task.name} an update of {today:,} examples takes {format_seconds(whole)}"
        f" whole and {format_seconds(split)} as 4 x {today // 4}, {split / whole:.2g} x as long"
    )


def _noise(measurements: Measurements, models: Models, plan: Plan | None) -> str | None:
    if models.noise is None or models.steps is None:
        return None
    today = measurements.task.recipe.batch_size
    made = [gain.progress_per_step for gain in gains(models.steps, (today, 2 * today), today)]
    if models.steps.decided:
        scale = format_number(round(models.noise.noise_scale or 0))
        critical = format_number(round(models.steps.critical_batch_size))
        known, shares = f"{scale} and the critical batch size about {critical}", [m.value for m in made]
    else:
        known, shares = (
            f"at least {format_number(round(models.noise.low))}",
            [m.high or 0 for m in made],
        )
    most = "" if models.steps.decided else "at most "
    return (
        f"on {measurements.task.name} the noise scale over the pilot is {known}: a step of {today:,}"
        f" makes {most}{shares[0]:.0%} of the full gradient's progress, one of {2 * today:,} makes"
        f" {most}{shares[1]:.0%}"
    )


def _growth(measurements: Measurements, models: Models, plan: Plan | None) -> str | None:
    decided = [point for point in models.noise_points if point.noise_scale is not None]
    if len(decided) < 2:
        return None
    first, last = decided[0], decided[-1]
    start, end = (format_number(round(point.noise_scale or 0)) for point in (first, last))
    return (
        f"on {measurements.task.name} the noise scale went from {start} at {first.examples_seen:,}"
        f" examples to {end} at {last.examples_seen:,}"
    )


def _candidate(plan: Plan, size: int) -> Candidate | None:
    return next((c for c in plan.candidates if c.global_batch_size == size), None)


_NUMBERS: dict[str, Callable[[Measurements, Models, Plan | None], str | None]] = {
    "largest": _largest,
    "faster": _faster,
    "rate": _rate,
    "accumulation": _accumulation,
    "noise": _noise,
    "growth": _growth,
}
