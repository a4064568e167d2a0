"""Find a task by file, module or built-in name, and say plainly why when it cannot be had."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from rightbatch.core.errors import InvalidTaskError, RightBatchError, did_you_mean
from rightbatch.tasks.builtin import BUILTIN_TASKS
from rightbatch.tasks.task import Task

DEFAULT_FACTORY = "make_task"
_EXAMPLE = "def make_task() -> rb.Task: return rb.Task(...)"


def load_task(spec: str) -> Task:
    """Load ``digits``, ``my_task.py``, ``my_task.py:name`` or ``package.module:name``.

    The named function takes no arguments and returns a ``Task``; in a file it is ``make_task``
    unless named.

    Raises:
        InvalidTaskError: there is no such task, or importing or calling it fails.
        MissingDataError: a built-in task's data set is not installed.
    """
    location, colon, name = spec.rpartition(":") if ":" in spec else (spec, "", "")
    name = name or DEFAULT_FACTORY
    if location.endswith(".py"):
        path = Path(location)
        if not path.is_file():
            raise InvalidTaskError(
                f"no file {location}", need="a Python file with make_task()", hint="check the path"
            )
        module, source = _import_file(path), path
    elif colon:
        module = _import_module(location)
        source = Path(module.__file__ or "")
    elif location in BUILTIN_TASKS:
        module, name = _import_module(BUILTIN_TASKS[location].module), BUILTIN_TASKS[location].factory
        source = Path(module.__file__ or "")
    else:
        hint = f"{did_you_mean(location, BUILTIN_TASKS)}, or give a file: my_task.py"
        raise InvalidTaskError(
            f"no built-in task {spec!r}", need="a task name, file.py or module:name", hint=hint
        )
    task = _call(module, name, spec)
    digest = hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else ""
    return dataclasses.replace(task, spec=spec, source_sha256=digest)


def _import_file(path: Path) -> ModuleType:
    """Import a file under its own name, its folder on the path as ``python file.py`` has it.

    Raises:
        InvalidTaskError: importing it raises.
    """
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # DataLoader workers unpickle the task's classes by module name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InvalidTaskError(*_broken(f"importing {path}", error, path)) from error
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except RightBatchError:
        raise
    except Exception as error:
        raise InvalidTaskError(*_broken(f"importing {name}", error, None)) from error


def _call(module: ModuleType, name: str, spec: str) -> Task:
    factory = getattr(module, name, None)
    if not callable(factory):
        found = f"{spec} has no function {name}()"
        raise InvalidTaskError(
            found, need=f"a function that returns a Task: {_EXAMPLE}", hint="name it after a colon"
        )
    try:
        task = factory()
    except RightBatchError:
        raise
    except Exception as error:
        raise InvalidTaskError(*_broken(f"{name}()", error, module.__file__)) from error
    if not isinstance(task, Task):
        found = f"{name}() returned {type(task).__name__}"
        raise InvalidTaskError(found, need="a rightbatch.Task", hint=_EXAMPLE)
    return task


def _broken(doing: str, error: Exception, source: Path | str | None) -> tuple[str, str, str]:
    """Name the exception and the last line of the task's own file on the way to it, if any."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(source)]
    where = f" at {lines[-1].filename}:{lines[-1].lineno}" if lines else ""
    if isinstance(error, RightBatchError):
        return f"{doing}{where}: {error.found}", error.need, error.hint
    found = f"{doing} raised {type(error).__name__}: {error}{where}"
    return found, "a task that imports and builds", "run the file with python first"
