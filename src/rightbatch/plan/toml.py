"""plan.toml: every value under the reason for it, edited by hand and read back with line numbers."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
import tomllib
from pathlib import Path

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Decision, Plan
from rightbatch.core.recipe import Constants
from rightbatch.core.record import locate
from rightbatch.core.store import check_schema, write_text

# What belongs to the answer and its evidence lies in plan.json; a run needs none of it.
_EVIDENCE = {
    "decisions",
    "plateau",
    "tolerance",
    "predicted",
    "candidates",
    "notes",
    "guards",
    "doubts",
    "memory_limit_bytes",
    "spec",
    "options",
}
_TABLE = re.compile(r"^\s*\[\s*([A-Za-z0-9_-]+)\s*\]")
_KEY = re.compile(r"^\s*(?:\"([^\"]+)\"|'([^']+)'|([A-Za-z0-9_-]+))\s*=")
_WIDTH = 96


def write_plan(path: Path, plan: Plan) -> None:
    """Write the plan with a reason in a comment above every value; ``read_plan`` reads it back."""
    write_text(path, format_plan(plan))


def format_plan(plan: Plan) -> str:
    """The text of plan.toml."""
    values = plan.model_dump(mode="json", exclude=_EVIDENCE, exclude_none=True)
    # Pydantic lists inherited fields first; a reader looks for the batch first.
    values = dict(sorted(values.items(), key=lambda item: item[0] in Constants.model_fields))
    # TOML wants tables after all plain values.
    tables = {name: values.pop(name) for name in [*values] if isinstance(values[name], dict)}
    reasons = {decision.name: decision for decision in plan.decisions}
    if "beta1" in reasons:
        reasons["betas"] = reasons["beta1"]
    lines = [
        *_comment(f"How to train {plan.task or 'this task'}: edit any value, then"),
        *_comment(
            f"  rightbatch train {shlex.quote(plan.spec) if plan.spec else 'TASK'} --plan plan.toml"
        ),
        *_comment(
            "Each value says how it is known: measured on this task, derived by a formula, or assumed."
        ),
    ]
    for note in plan.warnings:
        lines += _comment(f"Note: {note}")
    lines.append("")
    for name, value in values.items():
        lines += _comment(_reason(reasons.get(name), name))
        lines += [f"{name} = {_literal(value)}", ""]
    for name, table in tables.items():
        lines += [*_comment(_reason(reasons.get(name), name)), f"[{name}]"]
        lines += [*(f"{key} = {_literal(value)}" for key, value in table.items()), ""]
    return "\n".join(lines)


def read_plan(path: Path) -> Plan:
    """Read a plan.toml, naming the line of whatever is wrong with it.

    Raises:
        InvalidInputError: the file is missing, is no TOML, is of another schema version, or holds an
            unknown key or an impossible value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = f"cannot read {path}: {error}"
        hint = "make one with `rightbatch plan TASK --out DIR`"
        raise InvalidInputError(found, need="a plan.toml", hint=hint) from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        where = f"{path}:{line[1]}" if line else str(path)
        hint = "compare with a plan that rightbatch wrote"
        raise InvalidInputError(f"{where}: {error}", need="TOML", hint=hint) from error
    lines = _key_lines(text)
    version_line = f":{lines['schema_version']}" if "schema_version" in lines else ""
    check_schema(values.get("schema_version"), f"{path}{version_line}")
    try:
        return Plan(**values)
    except InvalidInputError as error:
        key = locate(error) or next((key for key in lines if key in error.found), "")
        where = f"{path}:{lines[key]}" if key in lines else str(path)
        raise InvalidInputError(f"{where}: {error.found}", error.need, error.hint) from error


def _comment(text: str) -> list[str]:
    """Comment lines; control characters, which TOML forbids there, become spaces."""
    plain = re.sub(r"[\x00-\x1f\x7f]+", " ", text)
    return textwrap.wrap(plain, _WIDTH, initial_indent="# ", subsequent_indent="#   ")


def _reason(decision: Decision | None, name: str) -> str:
    if decision is None:
        reasons = {
            "schema_version": "the layout of this file",
            "task": "the task this plan was made for; training any other with it is refused",
            "objective": "what the planner minimised",
            "device": "what the split was planned for; training runs where --device says",
            "is_derived": "whether that device was not there, and its times and memory derived",
            "target": "asked for instead of the task's own",
            "batch_schedule": "how the batch grows to global_batch_size",
            "batch_norm": "over one micro-batch; or sync, ghost, group",
            "ghost_batch_size": "examples that ghost BatchNorm normalises together",
            "decay_at": "examples after which a step schedule lowers the rate",
            "decay_factor": "by which a step or plateau schedule lowers the rate",
            "patience": "evaluations without a better metric before a plateau lowers the rate",
            "warmup_start": "share of the learning rate at which warmup begins",
        }
        return reasons.get(name, "assumed: kept as in the recipe")
    return f"{decision.evidence}: {decision.reason} [{decision.rule}; {decision.source}]"


def _literal(value: object) -> str:
    """A TOML literal; JSON's scalars, strings and arrays are TOML's too, but for a bare DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key_lines(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _TABLE.match(line):
            found.setdefault(match[1], number)
        elif match := _KEY.match(line):
            found.setdefault(match[1] or match[2] or match[3], number)
    return found
