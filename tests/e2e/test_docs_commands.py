"""Every command and every Python snippet that README and docs show is run as it is shown.

A block is left out only where the line above it says why: ``<!-- not run: reason -->``.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cli_runner import run_cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+ -->$")
MAY_BE_UNDECIDED = {"noise"}  # exit code 1 is an answer there


class Block(NamedTuple):
    line: int
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page that are to be run, in order."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        before = text[: match.start()]
        if match[1] in {"console", "bash", "python"} and not NOT_RUN.search(before.rstrip()):
            yield Block(before.count("\n") + 2, match[1], match[2])


def commands(block: Block) -> list[list[str]]:
    joined = block.text.replace("\\\n", " ")
    return [
        shlex.split(line[2:], comments=True) for line in joined.splitlines() if line.startswith("$ ")
    ]


PAGES_WITH_BLOCKS = [page for page in PAGES if any(blocks(page))]


@pytest.mark.parametrize("page", PAGES_WITH_BLOCKS, ids=lambda page: page.name)
def test_what_a_page_shows_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.language == "python":
            exec(compile(block.text, where, "exec"), {"__name__": "snippet"})
            continue
        found = commands(block)
        assert found, f"{where}: no line begins with '$ '"
        for name, *arguments in found:
            if name != "rightbatch":
                subprocess.run([name, *arguments], check=True, timeout=120)
                continue
            called = run_cli(*arguments)
            allowed = {0, 1} if arguments[0] in MAY_BE_UNDECIDED else {0}
            assert called.code in allowed, f"{where}: rightbatch {shlex.join(arguments)}\n{called.err}"


def test_the_task_in_the_readme_is_the_example_file() -> None:
    snippets = [block.text for block in blocks(ROOT / "README.md") if block.language == "python"]
    example = (ROOT / "examples" / "own_task.py").read_text(encoding="utf-8")
    docstring, _, code = example.partition("\n\n")
    assert docstring.startswith('"""')
    assert code in snippets


def test_every_verb_is_shown_in_the_readme() -> None:
    from rightbatch.cli.app import VERBS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in VERBS if f"rightbatch {name}" not in text] == []
