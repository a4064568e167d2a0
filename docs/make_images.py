"""Draw the README's pictures from a folder that `rightbatch plan digits --train --out demo` made.

    python docs/make_images.py demo

Needs Debian's chromium for the picture of the report.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from rightbatch.cli.plan import plan

IMAGES = Path(__file__).parent / "images"
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"


def draw_terminal(folder: Path) -> None:
    """Plan again from the saved measurements and record what a terminal of 110 columns shows."""
    console = Console(record=True, width=110, file=io.StringIO(), highlight=False, markup=False)
    console.print(f"$ rightbatch plan digits --train --out {folder.name}")
    for part in plan(str(folder)).text:
        console.print(part)
    svg = console.export_svg(title="rightbatch")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # no font from the network
    (IMAGES / "terminal.svg").write_text(svg, encoding="utf-8")


def draw_report(folder: Path) -> None:
    """Photograph the top of the report."""
    page = (folder / "report.html").resolve().as_uri()
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", *FLAGS.split(), f"--user-data-dir={profile}", "--window-size=1100,1500"]
        command += [f"--screenshot={IMAGES / 'report.png'}", "--virtual-time-budget=5000", page]
        subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    draw_terminal(Path(sys.argv[1]))
    draw_report(Path(sys.argv[1]))
