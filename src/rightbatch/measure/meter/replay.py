"""Proof, once, that what hooks take for one example's gradient is that.

The sum of all contributions can be right while examples are mixed up: rows that are positions of all
examples, a layer that couples examples. So the recorded forward is run again, with the same random
numbers, and differentiated for a single example: its gradient must have the norm that hooks found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rightbatch.measure.gradients import in_reals, undisturbed
from rightbatch.measure.meter.nested import detached, tensors_in
from rightbatch.measure.meter.rerun import Call, Keep, autocast_now, run_call, silenced

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.3, torch.float16: 0.3}
RELATIVE_TO_MEAN = 1e-3  # differences below this share of the mean square are rounding


class Replay:
    """Owns two hooks on the whole model during one forward, and what they recorded."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._call: Call | None = None
        self._random: list[Tensor] = []

    def arm(self, model: nn.Module) -> None:
        """Record the last forward with gradients before the first backward."""
        self._call = None
        self._handles = [
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]

    def disarm(self) -> None:
        """Remove the hooks and let go of what was recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._call, self._random = None, []

    def _is_over(self) -> bool:
        return self._call is not None and any(g is not None for g in self._call.output_grads)

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and not self._is_over():
            self._call = None
            self._random = [torch.get_rng_state(), *_accelerator_states()]

    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        outputs = tensors_in(output)
        wanted = [t for t in outputs if t.requires_grad]
        if not (torch.is_grad_enabled() and wanted and self._call is None):
            return
        self._call = Call(
            detached(args), detached(kwargs), [None] * len(outputs), autocast_now(wanted[0].device.type)
        )
        for k, tensor in enumerate(outputs):
            if tensor.requires_grad:
                tensor.register_hook(Keep(self._call, k))

    def disproved(
        self,
        model: nn.Module,
        squares: Mapping[nn.Parameter, Tensor],
        n: int,
        precision: torch.dtype,
    ) -> set[nn.Parameter]:
        """Parameters whose squared norms are not those of single examples.

        Args:
            model: as recorded.
            squares: exact ones by parameter, [1 or 2, N].
            n: examples.
            precision: the coarsest that gradients came in.

        Returns:
            Empty where the model cannot be run again, or returns nothing with one row an example.
        """
        call = self._call
        grads = [] if call is None else [g for g in call.output_grads if g is not None]
        if call is None or not grads or any(g.dim() == 0 or len(g) % n for g in grads):
            return set()
        parameters = list(squares)
        failed: set[nn.Parameter] = set()
        with undisturbed(model), silenced(model), torch.enable_grad():
            _restore(self._random)
            try:
                outputs = run_call(model, {}, [*tensors_in(call.args), *tensors_in(call.kwargs)], call)
                for example in (0, n - 1):
                    masked = [_only(g, example, n) for g in grads]
                    found = torch.autograd.grad(
                        outputs, parameters, masked, allow_unused=True, retain_graph=True
                    )
                    for p, g in zip(parameters, found, strict=True):
                        truth = _square(g)
                        seen, mean = float(squares[p][0, example]), float(squares[p][0].mean())
                        slack = TOLERANCE[precision] * max(truth, seen) + RELATIVE_TO_MEAN * mean
                        if not abs(seen - truth) <= slack:
                            failed.add(p)
            except RuntimeError:  # such as reentrant checkpoints, which refuse this kind of backward
                return set()
        return failed


def _square(gradient: Tensor | None) -> float:
    if gradient is None:
        return 0.0
    return float(torch.linalg.vector_norm(in_reals(gradient).double())) ** 2


def _only(gradient: Tensor, example: int, n: int) -> Tensor:
    """Zero but for one example's rows."""
    rows = len(gradient) // n
    masked = torch.zeros_like(gradient)
    masked[example * rows : (example + 1) * rows] = gradient[example * rows : (example + 1) * rows]
    return masked


def _accelerator_states() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _restore(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])
