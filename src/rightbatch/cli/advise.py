"""``rightbatch advise``: a starting point without code, and answers to common sayings."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from cyclopts import Parameter

from rightbatch.cli.output import Answer
from rightbatch.cli.source import Flag
from rightbatch.core.devices import parse_accelerator
from rightbatch.core.errors import InvalidInputError, did_you_mean
from rightbatch.core.plan import Objective, Plan
from rightbatch.core.samples import Measurements
from rightbatch.core.sources import SOURCES
from rightbatch.core.store import read_record
from rightbatch.plan.advise import advise as make_advice
from rightbatch.plan.questions import UseCase, answer_question, questions, use_cases
from rightbatch.plan.situation import Advice, Normalization, Situation
from rightbatch.plan.transformer_config import read_transformer_config
from rightbatch.report.tables import Table, decision_text
from rightbatch.report.terminal import render


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of task and device; leave out what is not."""

    device: str | None = None
    """An accelerator such as cuda:a100-40gb."""
    hf_config: Path | None = None
    """A Hugging Face config.json."""
    seq: int | None = None
    """Tokens per sequence."""
    params: int | None = None
    """Parameters of the model."""
    examples: int | None = None
    """Training examples."""
    tokens: int | None = None
    """Tokens that a language model will be trained on in all."""
    optimizer: str = "adamw"
    """A torch.optim class, in any case."""
    batch: int | None = None
    """Today's global batch, in examples."""
    lr: float | None = None
    """Today's learning rate, tuned at --batch."""
    fine_tuning: Flag = False
    """Train on from pre-trained weights."""
    normalization: Normalization | None = None
    """Kind of normalization layers."""
    positives: float | None = None
    """Fraction of the targets that are positive, such as 0.001."""
    targets: int = 1
    """Targets per example, such as the positions of a window."""
    replicas: int | None = None
    """Devices that share the global batch."""


NOTHING = Known()


def advise(
    *,
    ask: str | None = None,
    measurements: Path | None = None,
    use_case: str | None = None,
    objective: Objective | None = None,
    known: Known = NOTHING,
    json: Flag = False,
) -> Answer:
    """Propose a starting configuration without any code, or answer a common saying.

    Args:
        ask: A question such as "just use the largest batch that fits?".
        measurements: Folder of an earlier plan, whose numbers belong to the answer of --ask.
        use_case: A common situation, such as fine-tuning; its implications fill in what is not given.
        objective: What to optimise for: balanced, unless the use case implies another.
        known: What is known of task and device.
        json: Print one JSON document on stdout.

    Raises:
        InvalidInputError: a number is out of range, the use case is unknown, or --measurements
            without --ask.
    """
    if ask is not None:
        return _answered(ask, measurements)
    if measurements is not None:
        hint = f"rightbatch plan {measurements} plans from it"
        raise InvalidInputError("--measurements without --ask", need="a question", hint=hint)
    case = _use_case(use_case) if use_case else None
    if case is not None:
        objective = objective or case.implied.get("objective")
        implied = {k: v for k, v in case.implied.items() if k != "objective"}
        unset = {k: v for k, v in implied.items() if getattr(known, k) == getattr(NOTHING, k)}
        known = replace(known, **unset)
    elif known == NOTHING and objective is None and sys.stdin.isatty() and not json:
        known, objective = _interview()
    objective = objective or "balanced"
    lines = make_advice(_situation(known, objective))
    return Answer(
        document={
            "task": None,
            "objective": objective,
            "use_case": use_case,
            "advice": [
                line.decision.model_dump(mode="json") | {"measure_with": line.command} for line in lines
            ],
        },
        text=(
            render(_table(lines)),
            *(_reason(line) for line in lines),
            *(
                [f"{case.title}: commonly advised is {case.common}. {_sentence(case.known)}"]
                if case
                else []
            ),
            "Nothing of this was measured on your task; rightbatch plan my_task.py measures it.",
        ),
    )


def _use_case(name: str) -> UseCase:
    if (case := use_cases().get(name)) is None:
        hint = did_you_mean(name, use_cases())
        raise InvalidInputError(f"--use-case {name}", need="a known situation", hint=hint)
    return case


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _situation(known: Known, objective: Objective) -> Situation:
    return Situation(
        accelerator=parse_accelerator(known.device) if known.device else None,
        objective=objective,
        fine_tuning=known.fine_tuning,
        num_train_examples=known.examples,
        num_train_tokens=known.tokens,
        num_parameters=known.params,
        transformer=read_transformer_config(known.hf_config) if known.hf_config else None,
        sequence_length=known.seq,
        optimizer=known.optimizer,
        batch_size=known.batch,
        learning_rate=known.lr,
        normalization=known.normalization,
        positive_fraction=known.positives,
        targets_per_example=known.targets,
        num_replicas=1 if known.replicas is None else known.replicas,
    )


def _interview() -> tuple[Known, Objective]:
    """Ask for what decides most; an empty answer is unknown."""
    from rich.console import Console
    from rich.prompt import Prompt

    console = Console(stderr=True)

    def asked(question: str, choices: list[str] | None = None, default: str = "") -> str:
        try:
            return Prompt.ask(
                question, choices=choices, default=default, console=console, show_default=bool(default)
            )
        except EOFError:
            raise KeyboardInterrupt from None  # Ctrl-D stops as Ctrl-C does

    def number(question: str, kind: type[int] | type[float]) -> Any:
        while text := asked(question):
            try:
                return kind(text.replace(",", "").replace("_", ""))
            except ValueError:
                console.print(f"{text!r} is no number; leave it empty where it is unknown")
        return None

    objective = asked("What matters most?", list(get_args(Objective)), "balanced")
    known = replace(
        NOTHING,
        device=asked("Accelerator, such as a100-40gb (empty: none or unknown)") or None,
        optimizer=asked("Optimizer", default="adamw"),
        examples=number("Training examples", int),
        batch=number("Today's batch size", int),
        lr=number("Today's learning rate", float),
        fine_tuning=asked("Training", ["from-scratch", "fine-tuning"], "from-scratch") == "fine-tuning",
        positives=number("Fraction of targets that are positive, if they are rare", float),
    )
    return known, objective  # pyright: ignore[reportReturnType] - the prompt accepts nothing else


def _table(lines: list[Advice]) -> Table:
    columns = ("what", "start at", "evidence", "rule", "to measure it")
    rows = tuple(
        (d.name.replace("_", " "), decision_text(d), d.evidence, d.rule, line.command)
        for line in lines
        for d in [line.decision]
    )
    return Table(columns=columns, rows=rows, words=frozenset(columns))


def _reason(line: Advice) -> str:
    decision = line.decision
    return f"{decision.name.replace('_', ' ')}: {decision.reason} ({SOURCES[decision.source].title})"


def _answered(text: str, folder: Path | None) -> Answer:
    measured, plan = None, None
    if folder is not None:
        measured = read_record(folder / "measurements.json", Measurements)
        plan = read_record(folder / "plan.json", Plan) if (folder / "plan.json").is_file() else None
    reply = answer_question(text, measured, plan)
    question = reply.question
    source = SOURCES[question.source] if question.source != "measured" or reply.measured else None
    numbers = reply.measured
    if numbers is None and folder is not None:
        numbers = "the measurements given have no number for this"
    return Answer(
        document={
            "task": measured.task.name if measured else None,
            "question": question.id,
            "taken_for": reply.said,
            "verdict": question.verdict,
            "answer": question.answer,
            "measured": reply.measured,
            "claims": list(question.claims),
            "source": question.source,
            "measure_with": question.command,
            "known_questions": [entry.said[0] for entry in questions()],
        },
        text=(
            f"Taken for: {reply.said}.",
            f"{question.verdict.capitalize()}. {question.answer}",
            *([f"Measured: {numbers}."] if numbers else []),
            *([f"Source: {source.title} ({source.where})."] if source is not None else []),
            f"To measure it: {question.command}",
        ),
    )
