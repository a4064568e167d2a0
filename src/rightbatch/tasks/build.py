"""Fresh models, optimizers and batches from a task's factories, and the checks on what they return."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from rightbatch.core.errors import InvalidInputError, InvalidTaskError, RightBatchError, did_you_mean
from rightbatch.core.facts import OPTIMIZER_FAMILIES, OptimizerFamily
from rightbatch.core.recipe import Constants
from rightbatch.tasks.task import Loss, Task
from rightbatch.tasks.where import raised

_OPTIMIZER_CONSTANTS = ("momentum", "betas", "eps", "weight_decay")


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use here, in words instead of an assertion.

    Raises:
        InvalidInputError: torch does not know it, or finds none of its kind.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        found = f"device {device!r}: {str(error).splitlines()[0]}"
        raise InvalidInputError(
            found, need="a device torch can use here", hint="--device cpu"
        ) from error


def build_model(task: Task, device: str = "cpu", seed: int = 0, *, values: bool = True) -> nn.Module:
    """Call the task's model factory under a seed and move the result to a device.

    Args:
        task: gives the factory.
        device: a model without values stays on ``meta``.
        seed: of the initial values.
        values: refuse a model that has shapes only.

    Raises:
        InvalidTaskError: the factory fails, or returns something else than a Module with values.
        RightBatchError: the factory's own code raised one.
    """
    check_device(device)
    torch.manual_seed(seed)
    try:
        model = task.model()
    except RightBatchError:
        raise
    except Exception as error:
        need, hint = "a factory that builds the model", "call it in Python"
        raise InvalidTaskError(*raised("model()", error, need, hint)) from error
    if not isinstance(model, nn.Module):
        found = f"model() returned {type(model).__name__}"
        raise InvalidTaskError(
            found, need="a torch.nn.Module", hint="pass a function that returns the model"
        )
    if has_values(model):
        return model.to(device).train()
    if values:
        found = "model() returned parameters on the meta device, which have shapes and no values"
        need, hint = "a model that can compute", "such a model can be traced: rb.trace_memory"
        raise InvalidTaskError(found, need=need, hint=hint)
    return model.train()


def has_values(model: nn.Module) -> bool:
    """Whether every parameter has values; those built under ``torch.device("meta")`` have none."""
    return not any(parameter.is_meta for parameter in model.parameters())


def batch_norm_layers(model: nn.Module) -> list[nn.Module]:
    """Layers whose statistics couple the examples of a micro-batch, in the model's present mode.

    One that the model keeps in evaluation mode uses its running statistics and couples nothing.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    layers = (module for module in model.modules() if isinstance(module, kinds))
    return [layer for layer in layers if layer.training or layer.running_mean is None]


def smallest_micro_batch(model: nn.Module) -> int:
    """1, or 2 where batch statistics need more than one example."""
    return 2 if batch_norm_layers(model) else 1


def optimizer_classes() -> dict[str, type[Optimizer]]:
    """Every ``torch.optim`` class by lower-case name."""
    found = {name.lower(): value for name, value in vars(torch.optim).items() if inspect.isclass(value)}
    return {n: v for n, v in found.items() if issubclass(v, Optimizer) and v is not Optimizer}


def build_optimizer(constants: Constants, model: nn.Module, learning_rate: float) -> Optimizer:
    """Build the optimizer that a recipe or plan names, over the model's trainable parameters.

    Raises:
        InvalidInputError: the name is unknown, or the optimizer takes no such constant.
        InvalidTaskError: building it fails, or its step wants a closure.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    make, given = _optimizer_factory(constants)
    try:
        optimizer = make(parameters, learning_rate, **given)
    except Exception as error:
        found = f"{constants.optimizer_name} raised {type(error).__name__}: {error}"
        hint = "build it over model.parameters() in Python"
        raise InvalidTaskError(found, need="an optimizer for this model", hint=hint) from error
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        found = f"{constants.optimizer_name}, whose step calls a closure for the loss again and again"
        need = "an optimizer that takes one gradient per step"
        raise InvalidTaskError(found, need=need, hint="use adamw or sgd")
    return optimizer


def _optimizer_factory(constants: Constants) -> tuple[Any, dict[str, Any]]:
    """What builds the optimizer, and the constants that were given for it.

    Raises:
        InvalidInputError: as ``build_optimizer`` says.
    """
    given = {
        name: value for name in _OPTIMIZER_CONSTANTS if (value := getattr(constants, name)) is not None
    }
    if not isinstance(constants.optimizer, str):
        if given:
            found = f"{', '.join(given)} beside the factory {constants.optimizer_name}"
            hint = "set them inside the factory"
            raise InvalidInputError(found, need="constants that are used", hint=hint)
        return constants.optimizer, {}
    known = optimizer_classes()
    if constants.optimizer.lower() not in known:
        hint = did_you_mean(constants.optimizer.lower(), known) + " (or a factory in the task's recipe)"
        raise InvalidInputError(
            f"optimizer {constants.optimizer!r}", need="a torch.optim class", hint=hint
        )
    kind = known[constants.optimizer.lower()]
    accepted = inspect.signature(kind).parameters
    for name, value in given.items():
        if name not in accepted:
            found = f"{name} = {value} for {kind.__name__}"
            raise InvalidInputError(
                found, need=f"a constant that {kind.__name__} has", hint=f"remove {name}"
            )
    return kind, given


def optimizer_family(optimizer: Optimizer) -> OptimizerFamily:
    """How the optimizer's update scales with the gradient; ``other`` claims nothing."""
    for kind in type(optimizer).__mro__:
        if kind.__name__ in OPTIMIZER_FAMILIES:
            return OPTIMIZER_FAMILIES[kind.__name__]
    return "other"


def collate(task: Task, indices: Iterable[int]) -> Any:
    """Read training examples by index and join them as the task's loader does.

    Rows of tensors are taken in one step each: the batch is the same, and so are measured and real
    loading, which both come here where there are no workers.
    """
    data, chosen = cast(Any, task.train_data), list(indices)
    if type(data) is TensorDataset and task.collate is None:
        rows = torch.tensor(chosen, dtype=torch.int64)
        return [tensor.index_select(0, rows.to(tensor.device)) for tensor in data.tensors]
    read: Any = getattr(data, "__getitems__", None)
    return join(task, read(chosen) if read else [data[i] for i in chosen])


def join(task: Task, examples: list[Any]) -> Any:
    """One batch from examples, by the task's ``collate``."""
    from torch.utils.data import default_collate

    return (task.collate or default_collate)(examples)


def to_device(batch: Any, device: str) -> Any:
    """Move every tensor of a batch: tensors, tuples, lists, dicts, and objects with ``.to``."""
    if isinstance(batch, Tensor) or hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def batch_examples(batch: Any) -> int:
    """Examples in a batch: the first dimension of its first tensor that has one.

    Raises:
        InvalidTaskError: the batch holds no such tensor.
    """
    for tensor in _tensors(batch):
        if tensor.dim():
            return tensor.shape[0]
    found = f"a batch of type {type(batch).__name__} without a tensor of one row per example"
    hint = "add one to the batch, such as the examples' indices"
    raise InvalidTaskError(found, need="a tensor to count examples by", hint=hint)


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Depth first, through mappings, tuples, lists and dataclasses."""
    if isinstance(batch, Tensor):
        yield batch
        return
    values: Iterable[Any] = ()
    if isinstance(batch, Mapping):
        values = cast(Any, batch).values()
    elif isinstance(batch, (list, tuple)):
        values = cast(Any, batch)
    elif is_dataclass(batch) and not isinstance(batch, type):
        values = (getattr(batch, field.name) for field in fields(batch))
    for value in values:
        yield from _tensors(value)


def loss_terms(
    task_loss: Any, model: nn.Module, batch: Any, num_examples: int | None = None
) -> dict[str, Loss]:
    """Call the task's loss; each of its terms is a sum with a count of its own.

    A plain mean is weighted by the examples it averages. A loss of one term has it under ``loss``.

    Args:
        task_loss: the task's.
        model: its first argument.
        batch: its second.
        num_examples: in the batch; None counts them where a plain mean needs it.

    Raises:
        InvalidTaskError: it returns neither a Loss, nor a scalar, nor a dictionary of these.
    """
    value = task_loss(model, batch)
    if not isinstance(value, Mapping):
        return {"loss": _as_loss(value, batch, num_examples, "loss returned")}
    if not value:
        hint = 'return {"loss": rb.Loss(total, count)}'
        raise InvalidTaskError("loss returned an empty dictionary", need="a term in it", hint=hint)
    return {
        str(name): _as_loss(term, batch, num_examples, f"loss returned, under {name!r},")
        for name, term in value.items()
    }


def compute_loss(task_loss: Any, model: nn.Module, batch: Any, num_examples: int) -> Loss:
    """Call the task's loss on one batch; several terms become one, counted by examples.

    Raises:
        InvalidTaskError: as ``loss_terms`` says.
    """
    terms = loss_terms(task_loss, model, batch, num_examples)
    if len(terms) == 1:
        return next(iter(terms.values()))
    means = [term.total / _or_one(term.count) for term in terms.values()]
    return Loss(torch.stack(means).sum() * num_examples, num_examples)


def _or_one(count: int | Tensor) -> int | Tensor:
    """A divisor for a sum over ``count`` targets, which is 0 where there are none."""
    return torch.where(count > 0, count, 1) if isinstance(count, Tensor) else count or 1


def _as_loss(value: Any, batch: Any, num_examples: int | None, returned: str) -> Loss:
    total = value.total if isinstance(value, Loss) else value
    if not isinstance(total, Tensor) or total.numel() != 1:
        shape = f" of shape {list(total.shape)}" if isinstance(total, Tensor) else ""
        raise InvalidTaskError(
            f"{returned} {type(value).__name__}{shape}",
            need="rb.Loss(total, count) or a scalar mean",
            hint="sum the per-target losses: rb.Loss(losses.sum(), losses.numel())",
        )
    if isinstance(value, Loss):
        return value if total.dim() == 0 else Loss(total.reshape(()), value.count)
    count = batch_examples(batch) if num_examples is None else num_examples
    return Loss(total.reshape(()) * count, count)
