"""The verbs, and the one place where errors become exit codes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, NamedTuple

from rightbatch import __version__
from rightbatch.cli.output import Answer, StoppedByUserError, show, show_error
from rightbatch.core.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    InvalidInputError,
    RightBatchError,
)

if TYPE_CHECKING:
    from cyclopts import App, CycloptsError


class Verb(NamedTuple):
    """A command, imported when it is called."""

    home: str
    line: str
    example: str


VERBS = {
    "plan": Verb(
        "plan:plan",
        "Measure a task, plan its batch size and learning rate, and show why.",
        "rightbatch plan digits --train --out demo",
    ),
    "train": Verb(
        "train:train",
        "Train a task by a plan, or by its recipe of today.",
        "rightbatch train digits --plan demo/plan.toml",
    ),
    "memory": Verb(
        "memory:memory",
        "Predict the peak memory of any batch size without running it.",
        "rightbatch memory digits --batch 1,32,1024 --limit 2GiB",
    ),
    "speed": Verb(
        "speed:speed",
        "Time a training step against batch size, and the loader beside it.",
        "rightbatch speed digits --time-budget 20s",
    ),
    "noise": Verb(
        "noise:noise",
        "Estimate the gradient noise scale over a short pilot run.",
        "rightbatch noise digits --time-budget 20s",
    ),
    "advise": Verb(
        "advise:advise",
        "Propose a starting configuration without any code, or answer a common saying.",
        'rightbatch advise --ask "just use the largest batch that fits?"',
    ),
    "validate": Verb(
        "validate:validate",
        "Compare a plan or a batch size with today's recipe over paired seeds.",
        "rightbatch validate digits --batch 256 --seeds 3",
    ),
    "critical": Verb(
        "critical:critical",
        "Measure the critical batch size by branches from points of training.",
        "rightbatch critical digits --batch 32:512 --seeds 3",
    ),
    "report": Verb(
        "tables:report",
        "Rebuild report.html from the records in a folder.",
        "rightbatch report demo",
    ),
    "tasks": Verb(
        "tables:tasks",
        "List the built-in tasks and whether their data is on this machine.",
        "rightbatch tasks",
    ),
    "scale": Verb(
        "scale:scale",
        "Move a learning rate and its companions to other batch sizes by cited rules.",
        "rightbatch scale --optimizer adamw --lr 1e-3 --batch 32 --to 512",
    ),
    "completion": Verb(
        "completion:completion",
        "Print the script by which a shell completes verbs, options and their values.",
        "rightbatch completion bash",
    ),
}

_ABOUT = "Which batch size, split how, with which learning rate, and how sure are we?"
_CODES = (
    "Exit codes: 0 done, 1 a finding or undecided, 2 bad input, 3 nothing fits, 130 interrupted,"
    " 143 terminated."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    if tokens in ([], ["--help"], ["-h"]):  # answered before the parser's slow imports
        sys.stdout.write(_overview() + "\n")
        return EXIT_DONE
    return _run(tokens, as_json="--json" in tokens)


def _overview() -> str:
    width = max(map(len, VERBS)) + 2
    verbs = (
        f"  {name:{width}}{verb.line}\n  {'':{width}}$ {verb.example}" for name, verb in VERBS.items()
    )
    usage = "Usage: rightbatch VERB [OPTIONS]    rightbatch VERB --help explains each option."
    return "\n\n".join([usage, _ABOUT, "\n".join(verbs), _CODES])


def build_app() -> App:
    """Register every verb by name; its module is imported when it is called."""
    from cyclopts import App, Parameter

    app = App(
        name="rightbatch",
        help=_ABOUT,
        help_format="plaintext",
        version=__version__,
        default_parameter=Parameter(negative=()),
        suppress_keyboard_interrupt=False,
    )
    for name, verb in VERBS.items():
        example = f"Example: {verb.example}"
        home = f"rightbatch.cli.{verb.home}"
        app.command(home, name=name, help=verb.line, help_epilogue=example)
    return app


def _run(tokens: list[str], *, as_json: bool) -> int:
    from cyclopts import CycloptsError

    try:
        command, bound, _ = build_app().parse_args(tokens, print_error=False, exit_on_error=False)
        if "json" not in bound.signature.parameters:  # --help and --version print by themselves
            command(*bound.args, **bound.kwargs)
            return EXIT_DONE
        with redirect_stdout(sys.stderr):  # what a task's own code prints is talk, not the answer
            answer: Answer = command(*bound.args, **bound.kwargs)
    except CycloptsError as error:
        show_error(_explain(error), as_json=as_json)
        return EXIT_BAD_INPUT
    except RightBatchError as error:
        show_error(error, as_json=as_json)
        return error.exit_code
    except KeyboardInterrupt as stop:
        kept = "; ".join(getattr(stop, "__notes__", ["nothing was kept"]))
        again = shlex.join(["rightbatch", *(token for token in tokens if token != "--refresh")])
        error = StoppedByUserError(f"Ctrl-C: {kept}", "time to finish", hint=f"go on with: {again}")
        show_error(error, as_json=as_json)
        return error.exit_code
    show(answer, as_json=as_json)
    return answer.exit_code


def _explain(error: CycloptsError) -> InvalidInputError:
    """Put a complaint about the command line into three parts."""
    error.verbose = False
    verb = " ".join(["rightbatch", *(error.command_chain or ())])
    found, _, guess = str(error).split(" Available commands:")[0].partition(" Did you mean ")
    hint = f"did you mean {guess}" if guess else f"see {verb} --help"
    return InvalidInputError(found.rstrip("."), need=f"a command line as in {verb} --help", hint=hint)
