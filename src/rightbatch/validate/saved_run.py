"""Checkpoints of a run that was trained already, as the points that branches begin from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.store import read_record
from rightbatch.measure.branches import trained_trunk
from rightbatch.measure.pilot import Pilot
from rightbatch.tasks.task import Task
from rightbatch.train.check import check_plan
from rightbatch.train.checkpoint import Checkpoints, read_checkpoint, read_manifest
from rightbatch.train.folder import PLAN
from rightbatch.train.state import check_shapes, load_optimizer, part
from rightbatch.validate.sides import as_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRun:
    """What branches from a run need: what it trained with, and where it was saved."""

    task: Task
    """The task, its recipe being what the run's plan says: batch, rate and constants."""
    manifests: dict[int, Path]
    """By examples seen, in their order."""


def read_run(path: Path, task: Task) -> SavedRun:
    """Read where a run of ``rightbatch train`` was saved; its tensors are left for later.

    Args:
        path: the folder of a run, for every checkpoint that it kept; or one ``update-NNN.json``.
        task: that the run was trained on.

    Raises:
        InvalidInputError: there is no checkpoint, it is another task's, or the plan changed the model.
    """
    one = path.suffix == ".json"
    folder = path.parent.parent if one else path
    paths = [path] if one else Checkpoints(folder / "checkpoints", keep=1).manifests()
    if not paths or not paths[0].exists():
        hint = f"train one: rightbatch train {task.spec or task.name} --checkpoint-every 1m --keep 5"
        need = "the folder of a run of `rightbatch train`, or checkpoints/update-NNN.json in it"
        raise InvalidInputError(f"no checkpoint in {path}", need=need, hint=hint)
    plan = check_plan(task, read_record(folder / PLAN, Plan))
    if plan.batch_norm in {"ghost", "group"}:
        found = f"{folder / PLAN} trains with batch_norm = {plan.batch_norm!r}"
        hint = "make that change in the task's own model"
        raise InvalidInputError(found, need="a run of the task's model as it is", hint=hint)
    return SavedRun(
        task=replace(task, recipe=as_recipe(plan)),
        manifests={read_manifest(manifest).examples: manifest for manifest in paths},
    )


def restored_trunk(task: Task, manifest: Path, *, device: str, seed: int) -> Pilot:
    """A pilot with the weights and the optimizer's state of a checkpoint; ``seed`` orders what follows.

    Raises:
        InvalidInputError: the checkpoint is damaged, or of another model or optimizer.
    """
    saved, tensors, texts = read_checkpoint(manifest)
    trunk = trained_trunk(task, 0, device=device, seed=seed)
    weights = part(tensors, "model")
    check_shapes(weights, trunk.model.state_dict(), "weight")
    trunk.model.load_state_dict(weights)
    load_optimizer(trunk.optimizer, texts.get("optimizer", ""), tensors, None)
    trunk.examples_seen = saved.examples
    return trunk
