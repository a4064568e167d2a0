"""Packages that only some features need."""

from __future__ import annotations

import importlib.util

from rightbatch.core.errors import MissingPackageError


def check_installed(package: str, *, need: str, extra: str) -> None:
    """Refuse a feature whose package is not there, without importing it.

    Args:
        package: as it is imported.
        need: what would do, and what for.
        extra: of rightbatch, that brings it.

    Raises:
        MissingPackageError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        hint = f"pip install 'rightbatch[{extra}]'"
        raise MissingPackageError(f"{package} is not installed", need=need, hint=hint)
