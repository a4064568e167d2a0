"""The whole gradient of an update in ``.grad``, and whether it is still what backward left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from rightbatch.measure.gradients import in_reals
from rightbatch.measure.meter.leaves import MicroBatchNorms, Weights, norm, weighted_square

COMPARED = 64  # elements of one parameter: a change of the whole gradient shows in any of them


class Fingerprint:
    """A few elements of ``.grad`` as backward left them, to see a later change of scale.

    Clipping or unscaling before the meter looks would otherwise make the whole gradient another
    one than that of which the parts were seen.
    """

    def __init__(self) -> None:
        self._handle: RemovableHandle | None = None
        self._parameter: nn.Parameter | None = None
        self._left: Tensor | None = None

    def arm(self, parameters: Sequence[nn.Parameter]) -> None:
        """Watch the last parameter: of a head, as a rule, which always has a gradient."""
        self._left = None
        self._parameter = parameters[-1]
        self._handle = self._parameter.register_post_accumulate_grad_hook(self._note)

    def disarm(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def _note(self, parameter: Tensor) -> None:
        self._left = _head(parameter.grad)

    def factor(self) -> float:
        """What ``.grad`` has been divided by since backward; 1 where nothing can be seen."""
        now = None if self._parameter is None else _head(self._parameter.grad)
        if self._left is None or now is None:
            return 1.0
        left, now = self._left.double(), now.double()
        product = float(left @ now)
        return float(left @ left) / product if product != 0.0 else 1.0


def _head(gradient: Tensor | None) -> Tensor | None:
    if gradient is None or gradient.is_sparse:
        return None
    return in_reals(gradient.detach()).flatten()[:COMPARED].clone()


def whole_gradient(model: nn.Module, weights: Weights | None) -> MicroBatchNorms:
    """Norms of ``.grad``, by parameter."""
    pairs = [(p, p.grad) for p in model.parameters() if p.requires_grad and p.grad is not None]
    weighted = weights and {p: weighted_square(g, weights[p]) for p, g in pairs}
    return MicroBatchNorms(norms={p: norm(g) for p, g in pairs}, weighted=weighted, kept={})


def gather_over_replicas(model: DistributedDataParallel, rows: list[list[float]]) -> list[list[float]]:
    """The rows of all replicas, one after the other; every replica has equally many.

    Args:
        model: gives the processes and the device they talk with.
        rows: of this process, of one length.
    """
    device = next(model.parameters()).device
    mine = torch.tensor(rows, dtype=torch.float64, device=device)
    theirs = [
        torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(model.process_group))
    ]
    torch.distributed.all_gather(theirs, mine, group=model.process_group)
    return torch.cat(theirs).tolist()
