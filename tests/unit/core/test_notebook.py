"""What a notebook shows of a result: all that is set, once, and never as markup."""

from html.parser import HTMLParser
from typing import Any

import pytest

import rightbatch as rb
from rightbatch.core.plan import Decision
from rightbatch.fit.noise_scale import NoiseScale

RECIPE = rb.Recipe(optimizer="sgd", lr=0.1, batch_size=32, epochs=5)
PAYLOAD = "</td><script>alert(1)</script><img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """Which tags a page opens, all of them closed in order, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen, self.text, self._open = set[str](), list[str](), list[str]()
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def shown(result: Any) -> str:
    return result._repr_html_()


def decision(name: str) -> Decision:
    return Decision(name=name, value=1, evidence="assumed", rule="r", source="s", reason=PAYLOAD)


def test_a_plan_is_a_table_of_what_is_set_with_long_lists_folded_up() -> None:
    decisions = tuple(decision(f"number {index}") for index in range(60))
    page = Tags(shown(rb.Plan.from_recipe(RECIPE, decisions=decisions)))
    assert {"table", "details"} <= page.seen
    assert page.text[:1] == ["Plan"]
    row = page.text.index("global_batch_size")
    assert page.text[row + 1] == "32"
    assert {"clip_norm", "guards"}.isdisjoint(page.text)
    assert "60, the first 50 shown" in page.text
    assert "number 49" in page.text
    assert "number 50" not in page.text


def test_no_text_becomes_markup() -> None:
    plan = rb.Plan.from_recipe(RECIPE, PAYLOAD, decisions=(decision(PAYLOAD),), notes=(PAYLOAD,))
    page = Tags(shown(plan))
    assert page.seen <= {"table", "caption", "tr", "th", "td", "details", "summary"}
    assert page.text.count(PAYLOAD) == 4


@pytest.mark.parametrize("value", [12.3456789, None])
def test_a_noise_scale_is_shown_with_what_it_has(value: float | None) -> None:
    scale = NoiseScale(
        examples_seen=8,
        noise_scale=value,
        low=1.0,
        high=None,
        grad_sq_norm=0.5,
        trace_covariance=2.0,
        num_samples=4,
        source="here",
    )
    text = Tags(shown(scale)).text
    assert ("noise_scale" in text, "12.3457" in text) == (value is not None, value is not None)
