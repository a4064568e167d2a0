"""Short runs from one point of training that differ in batch size and learning rate alone.

Every branch starts from a copy of the same weights and optimizer state and reads the same examples
in the same order, so that the losses of two branches over the same examples can be paired
(Merrill et al. 2025, arXiv:2505.23971, Sec. 3.1; the pairing is ours).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.recipe import Constants
from rightbatch.measure.pilot import Pilot
from rightbatch.tasks.build import collate, to_device
from rightbatch.tasks.order import epoch_order
from rightbatch.tasks.step import forward_backward
from rightbatch.tasks.task import Task

_GROUP_CONSTANTS = ("momentum", "betas", "eps", "weight_decay")


@dataclass(slots=True)
class Branch:
    """One run from the fork on."""

    task: Task
    device: str
    seed: int
    batch_size: int
    """Examples per update, over all micro-batches."""
    micro_batch_size: int
    constants: Constants
    model: nn.Module
    optimizer: Optimizer
    examples: int = 0
    """Processed since the fork."""
    diverged: bool = False

    def train(self, num_examples: int) -> float:
        """Train on the next examples; return their mean loss per target before each update.

        Infinity where it is not finite: the branch has diverged and is not trained any more.

        Raises:
            InvalidInputError: the examples are no whole number of updates.
        """
        if num_examples % self.batch_size:
            found = f"{num_examples} examples in batches of {self.batch_size}"
            raise InvalidInputError(found, need="a multiple", hint=f"use {self.batch_size} x n")
        total, targets = 0.0, 0.0
        for _ in range(num_examples // self.batch_size):
            if self.diverged:
                break
            loss, counted = self._update()
            total, targets = total + loss, targets + counted
            self.diverged = not math.isfinite(total)
        return math.inf if self.diverged or not targets else total / targets

    def _update(self) -> tuple[float, float]:
        """One optimizer step over ``batch_size`` examples; returns summed loss and targets."""
        indices = _order(self.task, self.seed, self.examples, self.batch_size)
        total, targets = 0.0, 0.0
        for start in range(0, self.batch_size, self.micro_batch_size):
            part = indices[start : start + self.micro_batch_size]
            loss = forward_backward(
                self.task.loss,
                self.model,
                to_device(collate(self.task, part), self.device),
                num_examples=len(part),
                divisor=self.batch_size,
                constants=self.constants,
                device=self.device,
            )
            total, targets = total + float(loss.total), targets + float(loss.count)
        self.examples += self.batch_size
        parameters = list(self.model.parameters())
        if targets not in (0.0, self.batch_size):
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.batch_size / targets)
        if self.constants.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.constants.clip_norm)
        if math.isfinite(total):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, targets


def fork(
    trunk: Pilot,
    *,
    batch_size: int,
    learning_rate: float,
    micro_batch_size: int | None = None,
    constants: Constants | None = None,
) -> Branch:
    """Copy weights and optimizer state of a pilot into a branch with its own batch and rate.

    Args:
        trunk: stands still and is left as it is.
        batch_size: examples per update.
        learning_rate: constant along the branch; groups keep their ratios to the recipe's rate.
        micro_batch_size: examples per forward; None is the whole batch.
        constants: give the optimizer's constants; None keeps the recipe's.
    """
    recipe = trunk.task.recipe
    model, optimizer = copy.deepcopy((trunk.model, trunk.optimizer))
    first = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, first, strict=True):
        group["lr"] = learning_rate * rate / first[0]
        for name in _GROUP_CONSTANTS:
            value = getattr(constants, name, None)
            if value is not None and name in group:
                group[name] = value
    return Branch(
        task=trunk.task,
        device=trunk.device,
        seed=trunk.seed + 1,  # other examples than the trunk has just seen
        batch_size=batch_size,
        micro_batch_size=micro_batch_size or batch_size,
        constants=constants or recipe,
        model=model,
        optimizer=optimizer,
    )


def _order(task: Task, seed: int, start: int, num_examples: int) -> list[int]:
    """Indices of the examples from ``start`` on, epoch after epoch: the same for every branch."""
    total = task.num_train_examples
    found: list[int] = []
    while len(found) < num_examples:
        epoch, at = divmod(start + len(found), total)
        order = epoch_order(task.recipe.sampler, total, seed=seed, epoch=epoch)
        found += order[at : at + num_examples - len(found)].tolist()
    return found


def trained_trunk(task: Task, num_examples: int, *, device: str, seed: int) -> Pilot:
    """Train today's recipe for a while, as the point that branches fork from.

    Raises:
        MeasurementError: today's recipe diverges.
    """
    total = task.recipe.total_examples(task.recipe.batch_size, task.num_train_examples)
    trunk = Pilot(task, device, seed, total)
    while trunk.examples_seen < num_examples:
        trunk.update()
    return trunk
