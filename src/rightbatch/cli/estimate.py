"""``rightbatch memory --hf-config config.json``: a transformer's memory from its shape alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cyclopts import Parameter

from rightbatch.cli.accelerator import names_accelerator
from rightbatch.cli.largest import Room
from rightbatch.cli.output import Answer
from rightbatch.cli.source import Flag
from rightbatch.core.devices import parse_accelerator
from rightbatch.core.errors import InfeasibleError, InvalidInputError
from rightbatch.core.sources import SOURCES
from rightbatch.core.units import format_bytes
from rightbatch.fit.cuda_memory import CONTEXT_BYTES, cublas_workspace_bytes
from rightbatch.fit.largest import largest_size
from rightbatch.fit.memory_law import LARGEST_SIZE
from rightbatch.plan.transformer_config import (
    TransformerConfig,
    count_parameters,
    read_transformer_config,
)
from rightbatch.plan.transformer_memory import (
    ERROR_SHARES,
    Precision,
    TransformerMemory,
    estimate_transformer_memory,
)
from rightbatch.report.tables import Table
from rightbatch.report.terminal import render

_SOURCE = "korthikanti2022"


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A transformer without code."""

    hf_config: Path | None = None
    """A Hugging Face config.json, instead of TASK: parameters and activations follow from it."""
    seq: int | None = None
    """Tokens in each sequence, with --hf-config."""
    optimizer: str = "adamw"
    """With --hf-config: adam, adamw, sgd, sgd-momentum, rmsprop or adagrad."""
    eager_attention: Flag = False
    """With --hf-config: attention that keeps its matrix of scores."""

    @property
    def given(self) -> list[str]:
        """Names of the options that were given."""
        return [name for name in self.__slots__ if getattr(self, name) != getattr(NO_SHAPE, name)]


NO_SHAPE = Shape()


def estimate_memory(
    shape: Shape,
    sizes: Sequence[int],
    *,
    precision: Precision,
    checkpointing: bool,
    accumulation_steps: int,
    device: str,
    limit_bytes: int | None,
    headroom: float,
) -> Answer:
    """Estimate a training step on CUDA, and the largest batch where there is a limit.

    Raises:
        InvalidInputError: the config cannot be read, an option has no such value, or the device is
            none of the catalogue.
        InfeasibleError: one sequence does not fit.
    """
    assert shape.hf_config is not None
    if shape.seq is None:
        found = "--hf-config without --seq"
        raise InvalidInputError(found, need="the tokens in each sequence", hint="--seq 512")
    if device != "cpu" and not names_accelerator(device):
        hint = "--device cuda:a100-40gb, or --limit 40GiB"
        raise InvalidInputError(f"--device {device} with --hf-config", "an accelerator by name", hint)
    accelerator = parse_accelerator(device) if device != "cpu" else None
    step = _Step(
        config=read_transformer_config(shape.hf_config),
        options={
            "sequence_length": shape.seq,
            "optimizer": shape.optimizer,
            "precision": precision,
            "checkpointing": checkpointing,
            "flash_attention": not shape.eager_attention,
            "accumulation_steps": accumulation_steps,
        },
        capability=accelerator.capability if accelerator else None,
    )
    predictions = [(size, step.at(size)) for size in sizes]
    limit = limit_bytes or (accelerator.memory_bytes if accelerator else None)
    room = Room(limit_bytes=limit, headroom=headroom, most_examples=LARGEST_SIZE) if limit else None
    largest = _largest(step, int(room.limit_bytes * (1 - headroom))) if room else None
    num_parameters = sum(count_parameters(step.config).values())
    source = SOURCES[_SOURCE]
    name = accelerator.title if accelerator else "the limit"
    fits = f"The largest batch that fits {name}'s {room} is {largest:,}" if room else ""
    return Answer(
        document={
            "task": str(shape.hf_config),
            "device": accelerator.name if accelerator else None,
            "num_parameters": num_parameters,
            "predictions": [step.document(size, found) for size, found in predictions],
            "evidence": "derived",
            "source": {"key": _SOURCE, "title": source.title, "where": source.where},
            "limit_bytes": limit,
            "max_micro_batch_size": largest,
            "limited_by": "memory" if room else None,
            "verified": False,
        },
        text=(
            render(_table(step, predictions)),
            f"{num_parameters:,} parameters, {shape.seq:,} tokens in each sequence, {shape.optimizer},"
            f" {precision}, {'checkpointed' if checkpointing else 'every activation kept'}.",
            f"Derived from {source.title} ({source.where}), {step.error_text}.",
            f"Note: not in it: the allocator's rounding{step.beside_text}.",
            f"{fits}, derived and not run."
            if room
            else "--limit 40GiB or --device cuda:a100-40gb gives the largest batch that fits.",
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A training step as a function of its batch."""

    config: TransformerConfig
    options: dict[str, Any]
    capability: tuple[int, int] | None
    """Of the device whose context and workspaces come on top; None counts tensors alone."""

    def at(self, size: int) -> TransformerMemory:
        """The estimate for a batch."""
        return estimate_transformer_memory(self.config, batch_size=size, **self.options)

    def interval(self, found: TransformerMemory) -> tuple[int, int]:
        """What the step takes, by the errors that were measured, on the device where there is one."""
        least, most = ERROR_SHARES[self.options["checkpointing"]]
        low, high = found.peak_bytes / (1 + most), found.peak_bytes / (1 + least)
        if self.capability is None:
            return int(low), math.ceil(high)
        workspaces = 2 * cublas_workspace_bytes(self.capability)  # of forward and of backward
        return (
            int(low) + workspaces + CONTEXT_BYTES[0],
            math.ceil(high) + workspaces + CONTEXT_BYTES[1],
        )

    def document(self, size: int, found: TransformerMemory) -> dict[str, Any]:
        """One prediction."""
        low, high = self.interval(found)
        return {
            "micro_batch_size": size,
            "peak_bytes": found.peak_bytes,
            "low_bytes": low,
            "high_bytes": high,
            "peak_at": found.peak_at,
            "parts": found.breakdown(),
        }

    @property
    def error_text(self) -> str:
        """How far estimates were from traces."""
        least, most = ERROR_SHARES[self.options["checkpointing"]]
        return f"{least:+.1%} to {most:+.1%} off the traces that it was compared with"

    @property
    def beside_text(self) -> str:
        """What the interval leaves out or counts."""
        if self.capability is None:
            return ", the CUDA context and libraries' workspaces"
        low, high = map(format_bytes, CONTEXT_BYTES)
        return f"; low and high count a CUDA context of {low} to {high} and cuBLAS's workspaces"


def _largest(step: _Step, usable_bytes: int) -> int:
    """Largest batch whose interval lies within what may be used.

    Raises:
        InfeasibleError: one sequence does not fit; says how many bytes are missing and what saves them.
    """

    def fits(size: int) -> bool:
        return step.interval(step.at(size))[1] <= usable_bytes

    largest = largest_size(fits)
    if largest == 0:
        least = step.interval(step.at(1))[1]
        found = (
            f"one sequence needs {least:,} bytes ({format_bytes(least)}), usable are {usable_bytes:,}"
        )
        hint = _savings(step, least) or "use a smaller model, or share it out over several devices"
        raise InfeasibleError(found, need=f"{least - usable_bytes:,} bytes more", hint=hint)
    return largest


def _savings(step: _Step, least_bytes: int) -> str:
    """Options that would take less for one sequence, the best first."""
    alternatives = {
        "--checkpointing": {"checkpointing": True},
        "--precision bf16": {"precision": "bf16"},
        "--precision pure-bf16": {"precision": "bf16-pure"},
        "--optimizer sgd": {"optimizer": "sgd"},
        "no --eager-attention": {"flash_attention": True},
    }
    saved: dict[str, int] = {}
    for name, change in alternatives.items():
        other = replace(step, options=step.options | change)
        saved[name] = least_bytes - other.interval(other.at(1))[1]
    best = sorted((name for name in saved if saved[name] > 0), key=lambda name: -saved[name])
    return ", ".join(f"{name} saves {format_bytes(saved[name])}" for name in best)


def _table(step: _Step, predictions: Sequence[tuple[int, TransformerMemory]]) -> Table:
    """Peaks with their ranges, and what holds the bytes at each."""
    parts = list(dict.fromkeys(name for _, found in predictions for name in found.breakdown()))
    ends = ("of the device, low", "high") if step.capability else ("low", "high")
    return Table(
        columns=("batch", "peak", *ends, *(name.replace("_", " ") for name in parts)),
        rows=tuple(
            (
                f"{size:,}",
                *map(format_bytes, (found.peak_bytes, *step.interval(found))),
                *(format_bytes(found.breakdown().get(name, 0)) for name in parts),
            )
            for size, found in predictions
        ),
    )
