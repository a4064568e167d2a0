"""What measuring gradient noise inside a training step costs, ours and others', on eight nets.

Every figure is the ratio of an update with the measurement to a plain AdamW update of the same net,
timed turn by turn in random order, in CPU seconds of one thread; optimizer step and ``zero_grad``
are in both. ``measured``: an update that is measured. ``default``: blocks of as many updates as the
automatic period has settled on, one of them measured, against as many plain ones. ``accumulate``:
four micro-batches an update, every update measured. ``memory``: peak of live tensor bytes. Peers are
timed like ``measured``; one that refuses a net shows its own words. Nets and peers that are not asked
for keep the figures they had.

    python benchmarks/noise/overhead.py [--rounds 30] [--peers SITE_PACKAGES] [NET ...]
    python benchmarks/noise/overhead.py --table
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nets import LARGE, Net, adamw, mean_loss
from overhead_peers import PEERS
from torch import Tensor

import rightbatch as rb

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import RESULTS, ratio_interval, save
from rightbatch.measure.memory.compat import record_allocator

WARM_UP, SETTLE, MICRO_BATCHES = 3, 60, 4


class Subject:
    """One net being trained, and what can be done in one update."""

    def __init__(self, net: Net) -> None:
        torch.manual_seed(0)
        self.net, self.model = net, net.model()
        self.optimizer = adamw(self.model)
        self.x, self.y = net.data(512)
        self.generator = torch.Generator().manual_seed(0)

    def loss(self, rows: Tensor) -> Tensor:
        return mean_loss(self.net, self.model, self.x[rows], self.y[rows])

    def update(self, meter: rb.NoiseMeter | None = None, micro_batches: int = 1) -> None:
        rows = torch.randint(len(self.x), (self.net.batch_size,), generator=self.generator)
        self.optimizer.zero_grad()
        for part in rows.chunk(micro_batches):
            (self.loss(part) / micro_batches).backward()
        if meter is not None:
            meter.update(groups=(self.loss(half) for half in rows.chunk(2)))
        self.optimizer.step()


def timed(run: Callable[[], Any]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def interleaved(plain: Callable[[], Any], other: Callable[[], float], rounds: int) -> dict[str, float]:
    """Paired ratios, the order drawn afresh each round; the first rounds warm up."""
    ratios: list[float] = []
    for turn in range(rounds + WARM_UP):
        if random.Random(turn).random() < 0.5:
            before, after = timed(plain), other()
        else:
            after, before = other(), timed(plain)
        if turn >= WARM_UP:
            ratios.append(after / before)
    return ratio_interval(ratios)


def measured_ratio(subject: Subject, rounds: int, micro_batches: int = 1) -> dict[str, Any]:
    meter = rb.NoiseMeter(subject.model, period=1)

    def one() -> float:
        with meter:  # hooks for the next update are part of this one's time
            return timed(lambda: subject.update(meter, micro_batches))

    one()  # the checks of the first measured update
    found = interleaved(lambda: subject.update(None, micro_batches), one, rounds)
    sample = meter.samples[-1]
    return {**found, "source": sample.source, "covered": round(sample.covered, 4)}


def default_ratio(subject: Subject, rounds: int) -> dict[str, Any]:
    meter = rb.NoiseMeter(subject.model)
    with meter:
        for _ in range(SETTLE):
            subject.update(meter)
    period = meter.period
    fixed = rb.NoiseMeter(subject.model, period=period)

    def block() -> float:
        with fixed:
            return timed(lambda: [subject.update(fixed) for _ in range(period)])

    block()

    def plain() -> None:
        for _ in range(period):
            subject.update()

    # Long blocks are quiet enough by themselves.
    return {**interleaved(plain, block, max(4, min(rounds, 800 // period))), "period": period}


def peak_bytes(subject: Subject, meter: rb.NoiseMeter | None) -> int:
    """Live tensor bytes at the highest point of one update, parameters and their state included."""
    subject.optimizer.zero_grad()
    log = record_allocator(lambda _: subject.update(meter), "overhead/")
    state = [v for s in subject.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    held = sum(t.numel() * t.element_size() for t in (*subject.model.parameters(), *state))
    live = peak = 0
    for event in log:
        live += event.delta_bytes if event.kind != "mark" else 0
        peak = max(peak, live)
    return held + peak


def memory_ratio(subject: Subject) -> float:
    subject.update()
    plain = peak_bytes(subject, None)
    meter = rb.NoiseMeter(subject.model, period=1)
    with meter:
        subject.update(meter)
        return round(peak_bytes(subject, meter) / plain, 4)


def peer_ratios(net: Net, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, build in PEERS.items():
        subject = Subject(net)
        twin = copy.deepcopy(subject.model)
        try:
            step = build(net, twin, adamw(twin))
            rows = torch.arange(net.batch_size)

            def other(
                step: Callable[[Tensor, Tensor], None] = step,
                subject: Subject = subject,
                rows: Tensor = rows,
            ) -> float:
                return timed(lambda: step(subject.x[rows], subject.y[rows]))

            found[name] = interleaved(subject.update, other, rounds)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    return found


def table(rows: dict[str, Any]) -> str:
    """The committed figures as Markdown."""
    ours = ("default", "measured", "accumulate")
    lines = [
        " | ".join(("| net", *ours, "memory", *PEERS, "")).rstrip(),
        "|" + " --- |" * (len(ours) + len(PEERS) + 2),
    ]
    for name, row in rows.items():
        cells = [f"{row[k]['value']:.2f} ({row[k]['low']:.2f} to {row[k]['high']:.2f})" for k in ours]
        cells.append(f"{row['memory']:.2f}")
        for peer in PEERS:
            found = row["peers"].get(peer)
            failed = "–" if found is None else "fails"
            cells.append(f"{found['value']:.2f}" if isinstance(found, dict) else failed)
        lines.append(" | ".join((f"| {name}", *cells, "")).rstrip())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*", default=list(LARGE))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--peers", help="a folder to import opacus, backpack and gns_pytorch from")
    parser.add_argument("--table", action="store_true", help="print what was found, measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads((RESULTS / "noise_overhead.json").read_text())["rows"]))
        return
    if options.peers:
        sys.path.append(options.peers)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    path = RESULTS / "noise_overhead.json"
    rows: dict[str, Any] = json.loads(path.read_text())["rows"] if path.exists() else {}
    for name in options.nets:
        net, before = LARGE[name], rows.get(name, {})
        rows[name] = {
            "measured": measured_ratio(Subject(net), options.rounds),
            "default": default_ratio(Subject(net), options.rounds),
            "accumulate": measured_ratio(Subject(net), options.rounds, MICRO_BATCHES),
            "memory": memory_ratio(Subject(net)),
            "peers": peer_ratios(net, options.rounds) if options.peers else before.get("peers", {}),
        }
        save("noise_overhead", {"rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
