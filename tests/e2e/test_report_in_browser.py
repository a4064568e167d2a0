"""The page in a real browser: plots are drawn under its policy, and hostile names stay text."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import records
from rightbatch.core.store import write_record
from rightbatch.report.html import write_report

pytest.importorskip("plotly")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PAYLOAD = "</script><img src=x onerror=\"document.title='canary'\"><a href='javascript:x'>"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
    pytest.mark.slow,
]


def browse(page: Path, profile: Path) -> tuple[str, str]:
    """The document after its scripts ran, and what the console said."""
    assert CHROMIUM
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    quiet += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    quiet += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [CHROMIUM, *quiet, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    said = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, "\n".join(said)


def test_every_plot_is_drawn_and_no_name_runs_as_code(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    facts = records.task_facts(name=f"digits{PAYLOAD}")
    write_record(folder / "measurements.json", records.measurements(task=facts, notes=(PAYLOAD,)))
    write_record(folder / "plan.json", records.plan(notes=(PAYLOAD,)))
    hostile = folder / "runs" / PAYLOAD.replace("/", "")
    write_record(hostile / "outcome.json", records.run(message=PAYLOAD))
    write_record(folder / "runs" / "recipe" / "outcome.json", records.run(batch=32))
    text, console = browse(write_report(folder), tmp_path / "profile")
    document = re.sub(r"<script[^>]*>.*?</script>", "", text, flags=re.DOTALL)
    assert console == ""
    assert "<title>canary" not in document
    assert "<img" not in document
    assert 'href="javascript' not in document
    assert "xlink:href" not in document  # plotly links text that it reads as an anchor
    drawn = re.findall(r'<div class="plot[^"]*"[^>]*><div class="plot-container', document)
    assert len(drawn) == 5
