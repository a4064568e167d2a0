"""The base of every record that crosses a file or user boundary: frozen, closed, exact in JSON."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from rightbatch.core.errors import InvalidInputError, RightBatchError, did_you_mean
from rightbatch.core.notebook import Shown

SCHEMA_VERSION = 1


class Record(Shown, BaseModel):
    """A frozen value object; an unknown key or an impossible value is refused in three parts."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, strict=False
    )

    def __init__(self, **values: Any) -> None:
        """Validate, turning pydantic's list of complaints into one rightbatch error.

        Raises:
            InvalidInputError: a key is unknown, missing or holds an impossible value.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidInputError(*_explain(error, type(self))) from error

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated like a new record."""
        kept = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**(kept | changes))


def locate(error: InvalidInputError) -> str | None:
    """Name the top-level key that a refused record failed at, if it was one key."""
    cause = error.__cause__
    loc = _most_telling(cause)["loc"] if isinstance(cause, ValidationError) else ()
    return str(loc[0]) if loc else None


def _most_telling(error: ValidationError) -> ErrorDetails:
    """The complaint to show: an unknown key explains a missing one, so it goes first."""
    return min(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")


def _explain(error: ValidationError, record: type[BaseModel]) -> tuple[str, str, str]:
    """Turn pydantic's complaints into found, need and hint; all but one are only counted."""
    first = _most_telling(error)
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, RightBatchError):
        return inner.found, inner.need, inner.hint
    key = ".".join(str(part) for part in first["loc"]) or record.__name__
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(str(first["loc"][-1]), _fields_at(record, first["loc"][:-1]))
        return f"unknown key `{key}`{more}", f"a key of {record.__name__}", hint
    if first["type"] == "missing":
        return f"no `{key}`{more}", f"`{key}` in {record.__name__}", f"add {key} = ..."
    need = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key} = {first['input']!r}{more}", need, f"change `{key}`"


def _fields_at(record: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the record nested at ``path``, as far as annotations tell."""
    for part in path:
        field = record.model_fields.get(str(part))
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            record = inner
    return list(record.model_fields)
