"""A run while it goes: the loop, and what stops it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, NamedTuple

from rightbatch.core.run import Outcome
from rightbatch.tasks.check import evaluate
from rightbatch.tasks.task import Task
from rightbatch.train.accumulate import WindowGradient
from rightbatch.train.adapt import CHECK_UPDATES, BatchGrowth, Meter, Plateau, from_text, read, to_text
from rightbatch.train.check import judge_of
from rightbatch.train.checkpoint import Manifest
from rightbatch.train.record import RunRecord
from rightbatch.train.sampler import Window, Windows, train_loader, valid_loader
from rightbatch.train.signals import StopRequests
from rightbatch.train.state import Tensors, pack_optimizer
from rightbatch.train.trouble import Runaway, bad_metrics, find_suspects, not_finite
from rightbatch.train.update import Updater


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """How often a run saves what it needs to go on, and how much of it is kept."""

    seconds: float = 600.0
    """Between two checkpoints; 0 saves after every update."""
    keep: int = 2
    """The newest so many; the best weights are kept beside them."""


DEFAULT_SAVING = Saving()


class End(NamedTuple):
    """How a run ended."""

    outcome: Outcome
    message: str
    suspects: tuple[int, ...] = ()


class Training:
    """Owns a run while it goes."""

    def __init__(
        self,
        task: Task,
        windows: Windows,
        updater: Updater,
        record: RunRecord,
        saving: Saving,
        early_stopping: int | None = None,
    ) -> None:
        self._early_stopping = early_stopping
        self.task, self.windows, self.updater, self.record = task, windows, updater, record
        self.ranks, self._saving = windows.ranks, saving
        self._runaway = Runaway()
        self._growth, self._plateau = BatchGrowth.of(updater.plan), Plateau.of(updater.plan)
        self.meter: Meter | None = None
        self._saved_at = self._started = self._paused = 0.0
        self._is_whole = True
        """Whether weights and record are of the same update."""
        self._owes_evaluation = False
        """Whether the epoch has ended and its evaluation is still to come."""

    def go_on(self, manifest: Manifest, tensors: Tensors, texts: dict[str, str]) -> None:
        """Stand where a checkpoint was made."""
        self.record.go_on(manifest)
        self.updater.load(tensors, texts, (self.windows.seed, 3, manifest.updates))
        self._runaway = Runaway.of(texts["runaway"])
        from_text(texts["adapted"], self._growth, self._plateau)
        self._owes_evaluation = "owes_evaluation" in texts
        if self.meter is not None and "meter" in texts:
            self.meter.load_state_dict(json.loads(texts["meter"]))
        self._look_ahead(manifest.updates)

    def _look_ahead(self, updates: int) -> None:
        """Cut windows anew from here on, by the batch of now; ``updates`` have been made of the old."""
        left = self.windows.updates
        schedule = self.windows.batch_schedule
        if self._growth is not None and schedule is not None:
            schedule = schedule.replace(milestones=((0, self._growth.batch),))
        self.windows = replace(
            self.windows,
            first=self.record.examples,
            updates=None if left is None else left - updates,
            batch_schedule=schedule,
        )

    def _updates(self) -> Generator[tuple[Window, Iterator[Any]]]:
        """Every window with the loader that gives its micro-batches; both anew when the batch grows."""
        while True:
            done = self.record.updates
            batches = iter(train_loader(self.task, self.windows, self.updater.device))
            for window in self.windows:
                yield window, batches
                if self._growth is not None and self._growth.batch != window.batch_size:
                    break
            else:
                return
            self._look_ahead(self.record.updates - done)

    def save(self) -> None:
        """Make a checkpoint; every process takes part."""
        with self._off_the_clock():
            tensors, texts = self.updater.state()
            texts["runaway"] = self._runaway.text()
            texts["adapted"] = to_text(self._growth, self._plateau)
            if self._owes_evaluation:
                texts["owes_evaluation"] = "yes"
            if self.meter is not None:
                texts["meter"] = json.dumps(self.meter.state_dict())
            self.record.save_checkpoint(tensors, texts, self.ranks.count)
            self._saved_at = perf_counter()

    def rescue(self) -> None:
        """Save the last whole update after an error, if it can still be had.

        An error amid a step leaves none, and with several processes the others may be gone: the run
        then goes on from the newest checkpoint.
        """
        if self._is_whole and self.record.updates and self.ranks.count == 1:
            self.updater.discard()
            self.save()

    def go(self, stop: StopRequests) -> End:
        """Train to the target, the end, a request to stop or a divergence."""
        record, updater = self.record, self.updater
        validation = valid_loader(self.task, self.windows, updater.device)
        self._saved_at = perf_counter()
        self._started = self._saved_at - record.seconds
        if validation is not None and self._owes_evaluation:
            with self._off_the_clock():
                end = self._evaluate(validation)
            if end is not None:
                return end
        for window, batches in self._updates():
            gradient = updater.accumulate(window, batches, lambda: self._signals(stop))
            if (end := self._update(window, gradient)) is not None:
                return end
            if validation is not None and window.ends_epoch:
                self._owes_evaluation = True
                with self._off_the_clock():
                    end = self._evaluate(validation)
                if end is not None:
                    return end
            interrupted, terminated, due, grows = gradient.signals
            if grows and self._growth is not None:
                self._growth.grow()
            if interrupted or terminated:
                message = f"stopped by {'SIGTERM' if terminated else 'Ctrl-C'}"
                outcome = Outcome.TERMINATED if terminated else Outcome.INTERRUPTED
                return End(outcome, f"{message}; saved after update {record.updates}")
            if due:
                self.save()
        if record.examples < updater.total_examples:
            left = updater.total_examples - record.examples
            message = f"stopped at max_updates = {record.updates:,}, {left:,} examples early"
            return End(Outcome.STOPPED, message)
        missed = "" if self.task.target is None else f" without reaching {self.task.target}"
        return End(Outcome.FINISHED, f"all {record.examples:,} examples processed{missed}")

    def _signals(self, stop: StopRequests) -> tuple[bool, bool, bool, bool]:
        """What a process may ask all to do after the update: to stop (twice), to save, to grow."""
        due = grows = False
        if self.ranks.is_first:
            due = perf_counter() - self._saved_at >= self._saving.seconds
            if self._growth is not None and self.record.updates % CHECK_UPDATES == 0:
                grows = self._growth.wants_more(read(self.meter))
        return stop.interrupted, stop.terminated, due, grows

    def _update(self, window: Window, gradient: WindowGradient) -> End | None:
        """Change the weights by a finite gradient, or say why not."""
        record, updater = self.record, self.updater
        if self.meter is not None:
            self.meter.update(examples=max(1, sum(window.micro_batch_sizes)))
        if gradient.is_finite:
            factor = 1.0 if self._plateau is None else self._plateau.factor
            middle = record.examples + window.num_examples / 2
            self._is_whole = False
            rate = updater.step(gradient.norm, middle, window.batch_size, factor)
            if record.updates == 0:  # what cannot be saved is refused now, not at the first checkpoint
                pack_optimizer(updater.optimizer)
            record.add_update(
                gradient,
                num_examples=window.num_examples,
                batch_size=window.batch_size,
                learning_rate=rate,
            )
            self._is_whole = True
            record.tell(perf_counter() - self._started - self._paused, lambda: self._more(gradient))
            runs_away = self._runaway.add(gradient.mean)
            return End(Outcome.DIVERGED, self._runaway.message) if runs_away else None
        updater.discard()
        if updater.back_off(gradient):
            record.add_skipped(gradient, window.num_examples)
            return None
        model = updater.whole_model()
        suspects = self.ranks.first(
            lambda: find_suspects(self.task, self.windows, window, model, updater.device)
        )
        return End(Outcome.DIVERGED, not_finite(gradient, record.updates, suspects), suspects)

    def _evaluate(self, validation: Any) -> End | None:
        """Evaluate on the first process, each example once; keep the best weights."""
        record, updater, target = self.record, self.updater, self.task.target
        evaluated = updater.whole_model() if updater.averaged is None else updater.averaged.module
        metrics = self.ranks.first(
            lambda: evaluate(
                self.task,
                evaluated,
                validation,
                updater.device,
                precision=updater.plan.precision,
            )
        )
        self._owes_evaluation = False
        if (trouble := bad_metrics(metrics, record.updates)) is not None:
            return End(Outcome.DIVERGED, trouble)
        judge = judge_of(target, metrics)
        since_best = 0
        if judge is not None:
            sign = 1 if judge.higher_is_better else -1
            score = sign * metrics[judge.metric]
            scores = [*(sign * made.metrics[judge.metric] for made in record.evaluations), score]
            since_best = len(scores) - 1 - scores.index(max(scores))
            if since_best == 0:
                record.save_weights("best", evaluated)
            if self._plateau is not None:
                self._plateau.see(score)
        record.add_evaluation(metrics)
        if target is not None and target.is_reached(metrics[target.metric]):
            return End(Outcome.TARGET_REACHED, f"{target} reached after {record.examples:,} examples")
        if self._early_stopping is not None and since_best >= self._early_stopping:
            best = record.evaluations[-1 - since_best]
            message = f"no better evaluation in {since_best} after that of update {best.updates}"
            return End(Outcome.EARLY_STOPPED, f"{message}, whose weights are best.safetensors")
        return None

    def _more(self, gradient: WindowGradient) -> dict[str, Any]:
        """What a line of metrics says beside loss and rate: the terms of the loss, and the noise."""
        more: dict[str, Any] = {"terms": gradient.terms} if gradient.terms else {}
        if (reading := read(self.meter)) is not None:
            more["noise_scale"] = [reading.noise_scale, reading.low, reading.high]
        return more

    @contextmanager
    def _off_the_clock(self) -> Generator[None]:
        before = perf_counter()
        yield
        self._paused += perf_counter() - before
