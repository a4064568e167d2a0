"""State as tensors and JSON: what an optimizer and the random generators hold, without pickle.

``pack`` takes a tree of dictionaries, lists, numbers and tensors apart: tensors go to safetensors by
name, everything else to JSON, from which ``unpack`` builds the same tree again. Reading it back makes
numbers and tensors, and nothing else.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from rightbatch.core.errors import InvalidInputError, InvalidTaskError

Tensors = dict[str, Tensor]


def pack(tree: object, prefix: str) -> tuple[str, Tensors]:
    """Take a tree apart: its JSON, and its tensors by names that begin with ``prefix``.

    >>> text, tensors = pack({"lr": 0.1, 0: (torch.ones(2), None)}, "optimizer")
    >>> sorted(tensors), unpack(text, tensors)["lr"], unpack(text, tensors)[0][1]
    (['optimizer.0'], 0.1, None)

    Raises:
        InvalidTaskError: something in it is neither a tensor nor plain data.
    """
    tensors: Tensors = {}

    def take(value: object) -> Any:
        if isinstance(value, Tensor):
            name = f"{prefix}.{len(tensors)}"
            tensors[name] = value.detach()
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[take(k), take(v)] for k, v in cast("dict[Any, Any]", value).items()]}
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [take(item) for item in cast("list[Any]", value)]}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        found = f"{prefix} holds a {type(value).__name__}"
        hint = "keep it out of state_dict(), or turn it into numbers"
        raise InvalidTaskError(found, need="tensors and plain data, saved without pickle", hint=hint)

    return json.dumps(take(tree)), tensors


def unpack(text: str, tensors: Tensors) -> Any:
    """Build again what ``pack`` took apart.

    Raises:
        InvalidInputError: the text is not what ``pack`` writes, or names a tensor that is not there.
    """

    def build(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        ((kind, value),) = cast("dict[str, Any]", node).items()
        if kind == "tensor":
            return tensors[value]
        if kind == "dict":
            return {build(key): build(item) for key, item in value}
        return {"list": list, "tuple": tuple}[kind](build(item) for item in value)

    try:
        return build(json.loads(text))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        found = f"state that cannot be read: {type(error).__name__}: {error}"
        hint = "delete this checkpoint, so that the one before it is taken"
        raise InvalidInputError(found, need="what a run saved", hint=hint) from error


def part(tensors: Tensors, prefix: str) -> Tensors:
    """Tensors whose names begin with ``prefix.``, without it."""
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def check_shapes(found: Tensors, wanted: Tensors, what: str) -> None:
    """Refuse tensors that are not exactly those of the model.

    Raises:
        InvalidInputError: a name is missing or too many, or a shape or dtype is another.
    """
    hint = "use the model that the run was started with"
    if odd := sorted(found.keys() ^ wanted.keys()):
        where = "the checkpoint" if odd[0] in found else "the model"
        message = f"{what} {odd[0]!r} is only in {where}"
        raise InvalidInputError(message, need="the same names in both", hint=hint)
    for name, tensor in found.items():
        saved = f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
        here = f"{wanted[name].dtype} {list(wanted[name].shape)}".removeprefix("torch.")
        if saved != here:
            raise InvalidInputError(f"{what} {name!r} is {saved}", need=f"{here}", hint=hint)


def pack_optimizer(optimizer: Optimizer) -> tuple[str, Tensors]:
    """Take an optimizer's state apart, with the shapes that its parameters and their state have.

    Raises:
        InvalidTaskError: something in it is neither a tensor nor plain data.
    """
    return pack({**optimizer.state_dict(), "shapes": _shapes(optimizer)}, "optimizer")


def _shapes(optimizer: Optimizer) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for index, parameter in enumerate(parameters):
        found[f"parameter {index}"] = list(parameter.shape)
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"state {name!r} of parameter {index}"] = list(value.shape)
    return found


def load_optimizer(
    optimizer: Optimizer, text: str, tensors: Tensors, split: Callable[[Tensor, Tensor], Tensor] | None
) -> None:
    """Give an optimizer back what ``pack_optimizer`` took from it.

    Args:
        optimizer: over the same parameters.
        text: the JSON.
        tensors: named in it, whole.
        split: from a whole tensor and its parameter to this process's part, if weights are sharded.

    Raises:
        InvalidInputError: it is the state of another optimizer, or of other parameters.
    """
    state = unpack(text, tensors)
    hint = "use the plan and model that the run was started with"
    try:
        saved = dict(state.pop("shapes"))
        if split is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for index, values in state["state"].items():
                for name, value in values.items():
                    if isinstance(value, Tensor):
                        values[name] = split(value, parameters[index])
        optimizer.load_state_dict(state)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        found = f"optimizer state that does not fit: {error}"
        raise InvalidInputError(found, need="that of this optimizer", hint=hint) from error
    here = _shapes(optimizer)
    for what in [*saved, *here]:
        if saved.get(what) != here.get(what):
            found = f"the optimizer's {what} has shape {here.get(what)}"
            raise InvalidInputError(found, need=f"{saved.get(what)}, as it was saved", hint=hint)


def random_state(device: torch.device) -> Tensors:
    """The generators of torch, numpy and Python in this process."""
    _, keys, position, has_gauss, gauss = cast("tuple[Any, ...]", np.random.get_state())
    _, words, second = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_rest": torch.tensor(math.nan if second is None else second, dtype=torch.float64),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Tensors, device: torch.device) -> None:
    """Put the generators where ``random_state`` found them.

    Raises:
        InvalidInputError: it is no state of these generators.
    """
    try:
        torch.set_rng_state(state["torch"])
        position, has_gauss, gauss = state["numpy_rest"].tolist()
        keys = state["numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))
        second = float(state["python_rest"])
        words = tuple(state["python"].tolist())
        random.setstate((3, words, None if math.isnan(second) else second))
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], device)
    except (LookupError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        found = f"random state that cannot be used: {type(error).__name__}: {error}"
        hint = "delete this checkpoint, so that the one before it is taken"
        raise InvalidInputError(found, need="what a run saved", hint=hint) from error
