"""HTML in which text is escaped unless it was built here: forgetting to escape is not possible."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Html(str):
    """Markup made by ``tag`` or by the page's own template; any other string is text."""

    __slots__ = ()


def escape(text: str) -> Html:
    """Text as markup; what is markup already stays.

    >>> escape('<b> & "c"')
    '&lt;b&gt; &amp; &quot;c&quot;'
    """
    return text if isinstance(text, Html) else Html(html.escape(text, quote=True))


def tag(name: str, *children: str, **attributes: str) -> Html:
    """One element; a trailing underscore in an attribute's name is dropped, others become dashes.

    >>> tag("td", "a < b", class_="number", data_label="Value")
    '<td class="number" data-label="Value">a &lt; b</td>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value, quote=True)}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{given}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Elements and texts one after another, texts escaped."""
    return Html("".join(escape(part) for part in parts))


def with_code(text: str) -> Html:
    """A sentence whose commands stand between backticks.

    >>> with_code("run `rightbatch plan <x>` now")
    'run <code>rightbatch plan &lt;x&gt;</code> now'
    """
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick inside a name: show the sentence as it is
        return escape(text)
    return join(tag("code", part) if i % 2 else part for i, part in enumerate(parts))
