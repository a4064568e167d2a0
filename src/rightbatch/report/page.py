"""The page that every report is: offline, and readable without JavaScript.

Everything needed to act is plain HTML; JavaScript adds the plots, whose numbers stand below them as
tables. The page may load nothing: its policy allows its own scripts, by their hash, and no others.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib import resources

from rightbatch.report import sections
from rightbatch.report.exhibits import Exhibit
from rightbatch.report.markup import Html, escape, join, tag

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
{scripts}
</body>
</html>
"""
# plotly.js writes style elements of its own; scripts are allowed by hash alone.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {scripts};"
    " base-uri 'none'; form-action 'none'"
)


def render_page(title: str, body: Iterable[Html], *, with_figures: bool) -> str:
    """The whole page as text; equal parts give equal pages.

    Args:
        title: of the window.
        body: in order.
        with_figures: whether it holds exhibits, whose plots need scripts.
    """
    scripts = [_read("page.js"), _plotly_js()] if with_figures else []
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts) or "'none'"
    return _PAGE.format(
        policy=_POLICY.format(scripts=hashes),
        title=escape(title),
        style=_read("page.css"),
        body=join(body),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def render_exhibit(exhibit: Exhibit) -> Html:
    """A plot, filled in by the page's script, and its numbers, open until the script closes them."""
    name = f"figure-{exhibit.key}"
    # In JSON a less-than sign occurs only inside strings, where an escape means the same.
    data = Html((exhibit.figure.to_json() or "").replace("<", "\\u003c"))
    numbers = [tag("summary", "The numbers"), sections.render_table(exhibit.table)]
    return tag(
        "figure",
        tag("h3", exhibit.title),
        tag("figcaption", exhibit.caption),
        tag("div", class_="plot", data_figure=name, role="img", aria_label=exhibit.title),
        tag("noscript", tag("p", "The plot needs JavaScript; its numbers are below.")),
        tag("script", data, type="application/json", id=name),
        Html(f'<details class="numbers" open>{join(numbers)}</details>'),
    )


def _read(name: str) -> str:
    return (resources.files("rightbatch.report") / name).read_text(encoding="utf-8")


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
