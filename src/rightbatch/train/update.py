"""One update, each of its parts exactly once: gradient, unscale, check, clip, rate, step, average."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rightbatch.core.plan import Plan
from rightbatch.core.schedule import batch_rate_factor, rate_at
from rightbatch.tasks.build import build_optimizer, to_device
from rightbatch.tasks.checkpointing import apply_checkpointing
from rightbatch.tasks.step import forward_terms
from rightbatch.tasks.task import Loss, Task
from rightbatch.train.accumulate import Replica, WindowGradient, accumulate_window, scale_gradients
from rightbatch.train.distributed import ALONE, Ranks, replicate, sync_of
from rightbatch.train.normalization import planned_model
from rightbatch.train.sampler import Window, seed_everything
from rightbatch.train.state import (
    Tensors,
    check_shapes,
    load_optimizer,
    pack_optimizer,
    part,
    random_state,
    set_random_state,
)

if TYPE_CHECKING:
    from rightbatch.train.sharding import Sharded


@dataclass(slots=True)
class LossScale:
    """What the loss is multiplied by in fp16, so that small gradients do not become 0.

    Halved where a gradient overflows, doubled after 2000 updates without one (Micikevicius et al.
    2018, arXiv:1710.03740, Section 3.2), as torch's GradScaler does.
    """

    value: float = 1.0
    good_updates: int = 0

    def overflowed(self) -> None:
        """Back off after an update that had to be left out."""
        self.value, self.good_updates = self.value / 2, 0

    def went_well(self) -> None:
        """Count an update, and try more after many."""
        self.good_updates += 1
        if self.good_updates == 2000:
            self.value, self.good_updates = self.value * 2, 0


class Updater:
    """Owns the weights, their optimizer and their average: ``accumulate``, then ``step``."""

    def __init__(
        self,
        task: Task,
        plan: Plan,
        *,
        total_examples: int,
        seed: int,
        device: str,
        ranks: Ranks = ALONE,
        every_parameter_used: bool = True,
        shard: bool = False,
    ) -> None:
        """Build model, optimizer and average afresh; schedules run over ``total_examples``."""
        self._task, self.plan, self.device, self._ranks = task, plan, device, ranks
        self.total_examples = total_examples
        self._on_cpu = torch.device(device).type == "cpu"  # where batches are already
        seed_everything(seed)
        self.model = planned_model(task, plan, device, seed)
        if plan.checkpointing:
            apply_checkpointing(self.model)
        self._sharded: Sharded | None = None
        if shard:
            from rightbatch.train.sharding import Sharded

            self._sharded = Sharded(self.model, self._forward, ranks, device)
        self.optimizer = build_optimizer(plan, self.model, plan.learning_rate)
        self.averaged: AveragedModel | None = None
        if plan.ema_decay is not None:
            average = get_ema_multi_avg_fn(plan.ema_decay)
            self.averaged = AveragedModel(self.model, multi_avg_fn=average)
        self.loss_scale = LossScale(2.0**16) if plan.precision == "fp16" else LossScale()
        self._parameters = list(self.model.parameters())
        # Running statistics move in the forward, before it is known whether there will be a step.
        # A module may also put another tensor in a buffer's place, so they are looked up by name.
        self._buffers = [
            (vars(module)["_buffers"], name)
            for module in self.model.modules()
            for name, _ in module.named_buffers(recurse=False)
        ]
        self._kept_buffers = [buffer.clone() for buffer in self._live_buffers()]
        # A factory may give its groups different rates: the schedule moves all by one factor.
        self._group_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.wrapped: nn.Module = self.model
        """What the loss is computed with: the model, or the replica that DDP joins to the others."""
        forward, sync = self._forward, sync_of(self.model)
        if self._sharded is not None:
            forward, sync = self._sharded.forward, self._sharded.sync
        elif ranks.count > 1:
            forward = self.wrapped = replicate(
                self.model, self._forward, every_parameter_used=every_parameter_used
            )
            sync = sync_of(self.wrapped)
        self._replica = Replica(
            model=self.model,
            parameters=self._parameters,
            forward=forward,
            sync=sync,
            ranks=ranks,
            is_sharded=shard,
        )
        if not ranks.is_first:  # the weights are the first one's; what dropout draws is one's own
            seed_everything(seed, 2, ranks.rank)

    def whole_model(self) -> nn.Module:
        """The model with all its weights on the first process; every process must ask."""
        return self.model if self._sharded is None else self._sharded.whole_model()

    def rate_at(self, examples_seen: float, batch_size: int) -> float:
        """The plan's learning rate at a point of the run, for a global batch."""
        plan = self.plan
        factor = batch_rate_factor(plan.batch_schedule, plan.global_batch_size, batch_size)
        return factor * rate_at(
            plan,
            plan.learning_rate,
            examples_seen,
            self.total_examples,
            warmup_start=plan.warmup_start,
        )

    def accumulate(
        self, window: Window, batches: Iterator[Any], signals: Callable[[], Sequence[float]] = tuple
    ) -> WindowGradient:
        """Leave in ``.grad`` the gradient of a window, taking its micro-batches from ``batches``."""
        if self._sharded is not None:
            self._sharded.share_buffers()
        sized = zip(window.micro_batch_sizes, batches, strict=False)
        return accumulate_window(
            self._replica,
            sized if self._on_cpu else ((size, to_device(b, self.device)) for size, b in sized),
            num_examples=window.num_examples,
            num_pieces=len(window.pieces),
            loss_scale=self.loss_scale.value,
            signals=signals,
        )

    def _forward(self, size: int, batch: Any) -> dict[str, Loss]:
        return forward_terms(
            self._task.loss,
            self.model,
            batch,
            num_examples=size,
            precision=self.plan.precision,
            device=self.device,
        )

    def step(
        self, norm: float, examples_seen: float, batch_size: int, rate_factor: float = 1.0
    ) -> float:
        """Clip, set the rate, change the weights, average them: once each.

        Args:
            norm: of the gradient that ``accumulate`` left.
            examples_seen: where in the run the schedule is to be read.
            batch_size: the global batch at this point of the run.
            rate_factor: what a plateau has made of the rate.

        Returns:
            The learning rate.
        """
        clip_norm = self.plan.clip_norm
        if clip_norm is not None and norm > clip_norm:  # the factor of torch's clip_grad_norm_
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            scale_gradients(gradients, clip_norm / (norm + 1e-6))
        learning_rate = rate_factor * self.rate_at(examples_seen, batch_size)
        factor = learning_rate / self.plan.learning_rate
        for group, rate in zip(self.optimizer.param_groups, self._group_rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        if self.averaged is not None:  # its first call copies the weights
            self.averaged.update_parameters(self.model)
        self._keep_buffers()
        if self.plan.precision == "fp16":
            self.loss_scale.went_well()
        return learning_rate

    def back_off(self, gradient: WindowGradient) -> bool:
        """Whether a gradient that is not finite only overflowed in fp16: then scale the loss less."""
        if self.plan.precision != "fp16" or self.loss_scale.value <= 1 or not isfinite(gradient.total):
            return False
        self.loss_scale.overflowed()
        return True

    def _live_buffers(self) -> list[Tensor]:
        found = (buffers.get(name) for buffers, name in self._buffers)
        return [buffer for buffer in found if buffer is not None]

    def _keep_buffers(self) -> None:
        """Remember them as they are now."""
        if not (live := self._live_buffers()):
            return
        with torch.no_grad():
            if [tensor.shape for tensor in live] == [tensor.shape for tensor in self._kept_buffers]:
                torch._foreach_copy_(self._kept_buffers, live)  # pyright: ignore[reportPrivateUsage]
            else:
                self._kept_buffers = [tensor.clone() for tensor in live]

    @torch.no_grad()
    def discard(self) -> None:
        """Leave the model as the last step left it, whatever has been accumulated since."""
        for buffer, kept in zip(self._live_buffers(), self._kept_buffers, strict=False):
            if buffer.shape == kept.shape:  # a module may have made another one since
                buffer.copy_(kept)

    def state(self) -> tuple[Tensors, dict[str, str]]:
        """Everything that the next update depends on, as tensors and texts; every process must ask.

        Raises:
            InvalidTaskError: the optimizer holds something that is no plain data.
        """
        optimizer, tensors = pack_optimizer(self.optimizer)
        tensors |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.averaged is not None:
            average = self.averaged.state_dict().items()
            tensors |= {f"average.{name}": value for name, value in average}
        if self._sharded is not None:
            tensors = self._sharded.gather(tensors)
        randoms = self._ranks.gather(random_state(torch.device(self.device)))
        for rank, random in enumerate(randoms):
            tensors |= {f"random.{rank}.{name}": value for name, value in random.items()}
        scale = [self.loss_scale.value, self.loss_scale.good_updates]
        return tensors, {"optimizer": optimizer, "loss_scale": json.dumps(scale)}

    def load(self, tensors: Tensors, texts: dict[str, str], key: Sequence[int]) -> None:
        """Go back to a state; more processes than left one draw afresh, seeded by ``key``.

        Raises:
            InvalidInputError: it is the state of another model or optimizer.
        """
        kept = part(tensors, "model")
        here = self.model.state_dict()
        check_shapes(kept, here, "weight")
        average = part(tensors, "average")
        wanted = {} if self.averaged is None else self.averaged.state_dict()
        check_shapes(average, wanted, "averaged weight")
        split = None
        if self._sharded is not None:
            from rightbatch.train.sharding import split_like as split

            kept = {name: split(value, here[name]) for name, value in kept.items()}
        self.model.load_state_dict(kept)
        if self.averaged is not None:
            self.averaged.load_state_dict(average)
        load_optimizer(self.optimizer, texts.get("optimizer", ""), tensors, split)
        value, good_updates = json.loads(texts.get("loss_scale", "[1.0, 0]"))
        self.loss_scale = LossScale(float(value), int(good_updates))
        self._keep_buffers()
        if random := part(tensors, f"random.{self._ranks.rank}"):
            set_random_state(random, torch.device(self.device))
        else:
            seed_everything(*key, self._ranks.rank)
