"""A complete, deterministic set of records of a task like ``digits``: nothing is measured here.

The samples follow known laws, so a test knows what fits and plans should find:
``STEP_SECONDS``, ``LOAD_SECONDS`` and ``CRITICAL_BATCH_SIZE`` below.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from rightbatch.core.facts import Environment, TaskFacts
from rightbatch.core.plan import Candidate, Decision, Interval, Plan, Prediction
from rightbatch.core.recipe import LoaderOptions, Recipe, Target
from rightbatch.core.run import Evaluation, Outcome, Run
from rightbatch.core.samples import (
    GradientSample,
    LoaderTiming,
    Measurements,
    MemoryTrace,
    Owner,
    Phase,
    PilotPoint,
    StepTiming,
)

STEP_SECONDS = (210e-6, 2.6e-6)  # per micro-batch, per example
OPTIMIZER_SECONDS = 160e-6
LOAD_SECONDS = (40e-6, 1.9e-6)
CRITICAL_BATCH_SIZE = 320.0
TODAY = 32
PARAMETER_BYTES = 26_122 * 4
_Event = tuple[int, str, Phase, Owner]
_OWNERS: tuple[Owner, ...] = (
    "parameters",
    "gradients",
    "optimizer_state",
    "buffers",
    "inputs",
    "activations",
    "temporaries",
)
_PHASES: tuple[Phase, ...] = ("setup", "forward", "backward", "optimizer")


def task_facts(**changes: Any) -> TaskFacts:
    """The facts of an MLP on 1,437 digits, AdamW, today at batch 32."""
    facts = TaskFacts(
        name="digits",
        spec="digits",
        num_train_examples=1437,
        num_valid_examples=360,
        num_parameters=26_122,
        num_trainable_parameters=26_122,
        num_batch_norm_layers=0,
        optimizer_class="AdamW",
        optimizer_family="adam",
        recipe=Recipe(optimizer="adamw", lr=1e-3, batch_size=TODAY, epochs=30, weight_decay=0.01),
        target=Target("accuracy", 0.97),
        loader=LoaderOptions(),
        fingerprint="0123456789abcdef",
    )
    return facts.replace(**changes)


def environment() -> Environment:
    """A small CPU."""
    return Environment(
        device="cpu",
        device_name="Example CPU at 2.5 GHz",
        memory_bytes=8 * 2**30,
        num_threads=2,
        python="3.12.4",
        torch="2.13.0",
        platform="Linux-6.1-x86_64",
    )


def memory_trace(micro_batch_size: int) -> MemoryTrace:
    """Two steps of a three-layer perceptron: what is born and dies, in order."""
    events: list[_Event] = [(PARAMETER_BYTES, "model", "setup", "parameters")]
    for step in range(2):
        events += _step_events(micro_batch_size, first=step == 0)
    operators = tuple(dict.fromkeys(event[1] for event in events))
    return MemoryTrace(
        micro_batch_size=micro_batch_size,
        source="fake",
        delta_bytes=tuple(event[0] for event in events),
        operator=tuple(operators.index(event[1]) for event in events),
        phase=tuple(_PHASES.index(event[2]) for event in events),
        owner=tuple(_OWNERS.index(event[3]) for event in events),
        operators=operators,
        phases=_PHASES,
        owners=_OWNERS,
        caveats=("scratch inside kernels is not traced",),
    )


def _step_events(b: int, *, first: bool) -> list[_Event]:
    widths = (128, 128, 128, 128, 10, 10)
    names = ("linear", "relu", "linear", "relu", "linear", "log_softmax")
    saved = [4 * b * width for width in widths]
    events: list[_Event] = []
    if not first:
        events.append((-PARAMETER_BYTES, "zero_grad", "setup", "gradients"))
    events.append((b * (64 * 4 + 8), "batch", "setup", "inputs"))
    for size, name in zip(saved, names, strict=True):
        events.append((size, name, "forward", "activations"))
    for size, name in zip(reversed(saved), reversed(names), strict=True):
        events.append((size, f"{name}_backward", "backward", "temporaries"))
        if name == "linear":
            part = PARAMETER_BYTES // 3 + (PARAMETER_BYTES % 3 if size == 4 * b * 10 else 0)
            events.append((part, f"{name}_backward", "backward", "gradients"))
        events.append((-size, f"{name}_backward", "backward", "temporaries"))
        events.append((-size, f"{name}_backward", "backward", "activations"))
    events.append((-b * (64 * 4 + 8), "batch", "backward", "inputs"))
    if first:
        events.append((2 * PARAMETER_BYTES, "adamw", "optimizer", "optimizer_state"))
    events.append((PARAMETER_BYTES, "adamw", "optimizer", "temporaries"))
    events.append((-PARAMETER_BYTES, "adamw", "optimizer", "temporaries"))
    return events


def measurements(*, undecided: bool = False, **changes: Any) -> Measurements:
    """Every stage measured: traces at 3 sizes, times at 11, noise at 6 points of a pilot.

    Args:
        undecided: drown the gradient in noise at the last point, so that nothing bounds it above.
        changes: fields of the record.
    """
    rng = np.random.default_rng(0)
    sizes = [2**power for power in range(10)] + [768]
    record = Measurements(
        task=task_facts(),
        environment=environment(),
        memory=tuple(memory_trace(b) for b in (8, 16, 64)),
        step_timings=tuple(
            StepTiming(micro_batch_size=b, seconds=_jitter(rng, STEP_SECONDS[0] + STEP_SECONDS[1] * b))
            for b in sizes
        ),
        optimizer_seconds=_jitter(rng, OPTIMIZER_SECONDS),
        loader_timings=tuple(
            LoaderTiming(
                micro_batch_size=b,
                num_workers=0,
                seconds=_jitter(rng, LOAD_SECONDS[0] + LOAD_SECONDS[1] * b),
            )
            for b in (8, 32, 128, 512)
        ),
        gradients=_gradients(rng, undecided),
        pilot=tuple(
            PilotPoint(examples_seen=seen, loss=loss, metrics={"accuracy": accuracy})
            for seen, loss, accuracy in (
                (0, 2.31, 0.09),
                (1437, 1.22, 0.83),
                (2874, 0.44, 0.91),
                (5748, 0.22, 0.94),
                (8622, 0.14, 0.957),
                (11496, 0.09, 0.963),
            )
        ),
        complete=("memory", "loader", "speed", "noise"),
    )
    return record.replace(**changes)


def _jitter(rng: np.random.Generator, seconds: float, n: int = 9) -> tuple[float, ...]:
    """Repetitions with 4 % of spread, never faster than 0.97 of the law."""
    return tuple(float(seconds * (0.97 + abs(0.04 * z))) for z in rng.standard_normal(n))


def _gradients(rng: np.random.Generator, undecided: bool) -> tuple[GradientSample, ...]:
    """|g_B|^2 = |G|^2 + tr/B at B = 32 and 256; the true noise scale is tr / |G|^2."""
    small, big = 32, 256
    samples: list[GradientSample] = []
    for seen, signal, trace in (
        (0, 1.6, 24.0),
        (1437, 0.55, 21.0),
        (2874, 0.21, 19.0),
        (5748, 0.1, 17.0),
        (8622, 0.06, 15.0),
        (11496, 0.002 if undecided else 0.045, 14.0),
    ):
        for _ in range(12):
            spread = np.exp(0.12 * rng.standard_normal(2))
            small_norm = float((signal + trace / small) * spread[0])
            big_norm = float((signal + trace / big) * spread[1])
            samples.append(
                GradientSample(
                    examples_seen=seen,
                    small_batch_size=small,
                    big_batch_size=big,
                    small_sq_norm=small_norm,
                    big_sq_norm=big_norm,
                    preconditioned_small_sq_norm=9 * small_norm,
                    preconditioned_big_sq_norm=9 * big_norm,
                )
            )
    return tuple(samples)


def update_seconds(batch: int) -> float:
    """Loading, forward and backward, and one optimizer step, by the laws above."""
    step = STEP_SECONDS[0] + STEP_SECONDS[1] * batch
    return step + LOAD_SECONDS[0] + LOAD_SECONDS[1] * batch + OPTIMIZER_SECONDS


def candidates() -> tuple[Candidate, ...]:
    """Batches 8 to 512, each in one micro-batch, scored by S(B) with the critical batch in doubt."""
    rng = np.random.default_rng(1)
    critical = CRITICAL_BATCH_SIZE * np.exp(0.6 * rng.standard_normal(2000))
    timing = np.exp(0.02 * rng.standard_normal(2000))
    sizes = [8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512]
    draws = {
        b: (critical + b) / (critical + TODAY) for b in sizes
    }  # examples to the target over today's, [2000]
    seconds = {
        b: draws[b] * (update_seconds(b) / b) / (update_seconds(TODAY) / TODAY) * timing ** (b != TODAY)
        for b in sizes
    }
    scores = {b: np.sqrt(seconds[b] * draws[b]) for b in sizes}
    best = np.min(np.stack(list(scores.values())), axis=0)
    return tuple(
        Candidate(
            global_batch_size=b,
            micro_batch_size=b,
            accumulation_steps=1,
            update_seconds=update_seconds(b),
            peak_bytes=max(accumulate(memory_trace(b).delta_bytes)),
            examples_ratio=_interval(draws[b]),
            seconds_ratio=_interval(seconds[b]),
            regret=float(np.mean(scores[b] / best - 1)),
        )
        for b in sizes
    )


def _interval(draws: Any) -> Interval:
    low, middle, high = (float(x) for x in np.quantile(draws, [0.05, 0.5, 0.95]))
    return Interval(value=middle, low=low, high=high)


def plan(**changes: Any) -> Plan:
    """Batch 96 instead of 32, the rate moved by the square root of 3."""
    scored = candidates()
    chosen = next(c for c in scored if c.global_batch_size == 96)
    record = Plan.from_recipe(
        task_facts().recipe,
        task="digits",
        global_batch_size=96,
        micro_batch_size=96,
        learning_rate=1e-3 * 3**0.5,
        warmup_examples=1437,
        betas=(0.7, 0.997),
        objective="balanced",
        decisions=_decisions(chosen),
        plateau=(64, 160),
        predicted=Prediction(
            seconds_to_target_ratio=chosen.seconds_ratio,
            examples_to_target_ratio=chosen.examples_ratio,
            probability_better=0.98,
        ),
        candidates=scored,
        notes=("the last batch of an epoch holds 93 examples",),
    )
    return record.replace(**changes)


def _decisions(chosen: Candidate) -> tuple[Decision, ...]:
    rows: tuple[tuple[Any, ...], ...] = (
        ("global_batch_size", 96, "derived", "least expected regret over S(B) t(B)", "mccandlish2018",
         "critical batch size 320 (119 to 860) against measured step times", 64, 160),
        ("micro_batch_size", 96, "measured", "fastest split that fits", "measured",
         "one micro-batch of 96 takes 460 µs and peaks at 605 KiB", None, None),
        ("accumulation_steps", 1, "measured", "global / micro", "measured",
         "the whole batch fits, and accumulation buys nothing", None, None),
        ("learning_rate", 1e-3 * 3**0.5, "assumed", "lr x sqrt(B / B_today)", "malladi2022",
         "0.001 x sqrt(96 / 32)", None, None),
        ("warmup_examples", 1437, "assumed", "one epoch where the rate grows", "goyal2017",
         "the rate grows 1.73 times, so it climbs over the first epoch", None, None),
        ("betas", "0.7, 0.997", "derived", "1 - kappa (1 - beta)", "malladi2022",
         "memory of 10 and 1,000 steps at 32 is kept in examples", None, None),
        ("weight_decay", 0.01, "assumed", "kept", "recipe", "the recipe's value", None, None),
        ("precision", "fp32", "assumed", "kept", "recipe", "the recipe's value", None, None),
    )  # fmt: skip
    return tuple(
        Decision(
            name=name,
            value=value,
            evidence=evidence,
            rule=rule,
            source=source,
            reason=reason,
            low=low,
            high=high,
        )
        for name, value, evidence, rule, source, reason, low, high in rows
    )


def run(name: str = "plan", batch: int = 96, **changes: Any) -> Run:
    """A run that reaches the target; a smaller batch takes fewer examples and more seconds."""
    pace = (CRITICAL_BATCH_SIZE + batch) / (CRITICAL_BATCH_SIZE + TODAY)
    evaluations: list[Evaluation] = []
    for epoch in range(1, 31):
        examples = 1437 * epoch
        accuracy = 0.985 - 0.9 * float(np.exp(-0.42 * epoch / pace))
        evaluations.append(
            Evaluation(
                examples=examples,
                updates=examples // batch,
                seconds=examples / batch * update_seconds(batch),
                train_loss=0.02 + 2.2 * float(np.exp(-0.5 * epoch / pace)),
                metrics={"accuracy": accuracy},
            )
        )
        if accuracy >= 0.97:
            break
    last = evaluations[-1]
    record = Run(
        task="digits",
        outcome=Outcome.TARGET_REACHED,
        message=f"accuracy {last.metrics['accuracy']:.3f} after {last.examples:,} examples",
        seed=0,
        global_batch_size=batch,
        examples=last.examples,
        updates=last.updates,
        seconds=last.seconds,
        target=Target("accuracy", 0.97),
        evaluations=tuple(evaluations),
        run_dir=Path("demo/runs") / name,
    )
    return record.replace(**changes)
