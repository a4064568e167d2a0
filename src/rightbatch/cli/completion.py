"""``rightbatch completion``: what a shell needs to complete a command line."""

from __future__ import annotations

from typing import Literal

from rightbatch.cli.output import Answer
from rightbatch.cli.source import Flag


def completion(shell: Literal["bash", "zsh", "fish"], /, *, json: Flag = False) -> Answer:
    """Print the script by which a shell completes verbs, options and their values.

    Args:
        shell: That is to complete. Write the script to where it looks for such scripts, as for bash to
            ~/.local/share/bash-completion/completions/rightbatch; new shells then complete.
        json: Print one JSON document on stdout.
    """
    from rightbatch.cli.app import build_app

    script = build_app().generate_completion(shell=shell)
    # TASK is a name or a file: without this, bash would no longer complete files.
    script = script.replace("\ncomplete -F ", "\ncomplete -o default -F ")
    return Answer(document={"task": None, "shell": shell, "script": script}, text=(script.rstrip(),))
