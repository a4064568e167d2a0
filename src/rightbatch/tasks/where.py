"""Where in the user's own code something happened."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from types import FrameType

import torch

_PACKAGE = Path(__file__).parents[1]
_STDLIB = Path(sysconfig.get_path("stdlib"))
_SITE = "site-packages"
_ABSENT_DEVICE = ("Torch not compiled with CUDA enabled", "Found no NVIDIA driver")


def raised_at(error: BaseException) -> str:
    """``file:line`` of the innermost line of the user's that an exception passed; empty without one."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((f"{f.filename}:{f.lineno}" for f in reversed(frames) if _is_users(f.filename)), "")


def running_at(frame: FrameType | None) -> str:
    """``file:line`` of the innermost line of the user's that is running; empty without one."""
    while frame is not None:
        if _is_users(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def at(place: str) -> str:
    """A place as the end of a sentence; nothing where there is none.

    >>> at("my_task.py:12"), at("")
    (' at my_task.py:12', '')
    """
    return f" at {place}" if place else ""


def raised(doing: str, error: Exception, need: str, hint: str) -> tuple[str, str, str]:
    """The three parts of an error for code of the user's that raised, with its line.

    Args:
        doing: what was called, such as ``loss``.
        error: what it raised.
        need: what would have been right.
        hint: what to do; code that asks for a device that is not here gets its own.
    """
    found = f"{doing} raised {type(error).__name__}: {error}{at(raised_at(error))}"
    if any(text in str(error) for text in _ABSENT_DEVICE):
        need = "code that stays on the device of its inputs"
        hint = "write .to(x.device) for .cuda(), or predict for one that is not here:"
        hint += " rightbatch memory TASK --device cuda:a100-40gb"
    return found, need, hint


def _is_users(filename: str) -> bool:
    path = Path(filename)
    if filename.startswith("<"):  # made by exec, as dataclasses and torch do
        return False
    inside = _PACKAGE in path.parents and "builtin" not in path.parts
    torchs = Path(torch.__file__).parent in path.parents
    library = _STDLIB in path.parents and _SITE not in path.parts
    return not (inside or torchs or library)
