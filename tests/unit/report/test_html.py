"""The page is read as a browser and as a reader without one would read it."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import records
from rightbatch.core.errors import InvalidInputError, MissingPackageError
from rightbatch.core.plan import Plan
from rightbatch.core.record import Record
from rightbatch.core.run import Outcome
from rightbatch.core.samples import Measurements
from rightbatch.core.sources import SOURCES
from rightbatch.core.store import write_record
from rightbatch.report.history import RunHistory, read_runs
from rightbatch.report.html import render_report, write_report

pytest.importorskip("plotly")

HOSTILE = [
    '</script><img src=x onerror="document.title=1">',
    "<script>document.title=1</script>",
    "\"'><svg/onload=document.title=1>",
    "</style></title></textarea></noscript><iframe srcdoc=x>",
    "--><!--[if IE]><b onclick=x>&lt;&#60;script&#62;",
    "]]>\u2028{{7*7}}${x}{policy}%{x}\\u003cscript\\u003e",
]


class Page(HTMLParser):
    """Elements in order, text outside scripts and styles, and the bodies of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.blocks: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.attributes.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            (self.blocks if dict(attrs).get("type") else self.scripts).append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            kind = self.blocks if self.attributes[-1][1].get("type") else self.scripts
            kind[-1] += data
        elif self._inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def history(name: str, batch: int, **changes: Any) -> RunHistory:
    run = records.run(name, batch, **changes)
    return RunHistory(name=name, global_batch_size=batch, evaluations=run.evaluations, run=run)


RUNS = (history("plan", 96), history("recipe", 32))


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(records.measurements(), records.plan(), RUNS, folder=Path("demo"))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_answer_comes_first_and_in_one_sentence(page: Page) -> None:
    text = page.text
    assert "Train digits with global batch 96 = micro 96 x accumulation 1 x replicas 1" in text[:200]


def test_the_picture_of_the_choice_stands_with_the_answer(page: Page) -> None:
    places = [page.text.index(t) for t in ("At a glance", "Which batch size is fastest", "The plan ")]
    assert places == sorted(places)
    assert page.text.count("Which batch size is fastest") == 1


def test_commands_in_warnings_are_set_as_code() -> None:
    plan = records.plan().replace(notes=("measure: `rightbatch plan x` does",))
    text = render_report(records.measurements(), plan)
    assert "<li>measure: <code>rightbatch plan x</code> does</li>" in text


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    loading = {"img", "link", "iframe", "object", "embed", "video", "audio", "source", "form", "base"}
    assert not loading & {tag for tag, _ in page.tags}
    assert not any("src" in names or "onload" in names for _, names in page.tags)
    links = [values["href"] for tag, values in page.attributes if tag == "a"]
    assert links
    assert all(re.match(r"#source-|https://arxiv\.org/abs/\d", link or "") for link in links)


def test_the_policy_allows_exactly_the_scripts_that_are_there(page: Page) -> None:
    (policy,) = [v["content"] or "" for _, v in page.attributes if "http-equiv" in v]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    expected = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in expected]
    assert len(expected) == 2


def test_the_drawing_library_is_inlined_once(html: str, page: Page) -> None:
    assert sum("plotly.js v" in script[:200] for script in page.scripts) == 1
    assert len(html) < 6_000_000


def test_there_are_five_figures_and_each_has_its_numbers_beside_it(page: Page) -> None:
    named = [v["data-figure"] for _, v in page.attributes if "data-figure" in v]
    blocks = {v.get("id") for t, v in page.attributes if t == "script" and v.get("type")}
    assert named == [f"figure-{k}" for k in ("candidates", "noise", "speed", "memory", "runs")]
    assert set(named) == blocks
    assert all(json.loads(block)["data"] for block in page.blocks)
    tables = [names for tag, names in page.tags if tag == "details"]
    assert tables == [("class", "open")] * 5


def test_the_numbers_of_every_figure_can_be_read_without_javascript(page: Page) -> None:
    for number in ("0.60 (0.54 to 0.72)", "11,496", "431,000", "605 KiB", "0.9723"):
        assert number in page.text
    assert "The plot needs JavaScript; its numbers are below." in page.text


def test_every_decision_shows_today_evidence_rule_source_and_reason(page: Page) -> None:
    for decision in records.plan().decisions:
        for text in (decision.name, decision.rule, decision.reason, SOURCES[decision.source].title):
            assert text in page.text
    badges = [
        v["class"] for t, v in page.attributes if t == "span" and "badge" in (v.get("class") or "")
    ]
    assert len(badges) == len(records.plan().decisions) + 3
    assert "learning_rate 0.001732 0.001 assumed" in page.text


def test_only_the_sources_used_are_cited(page: Page) -> None:
    names = [values.get("id") or "" for _, values in page.attributes]
    cited = [name for name in names if name.startswith("source-")]
    used = {d.source for d in records.plan().decisions} | {"memory_law", "noise_calibration"}
    assert sorted(cited) == sorted(f"source-{key}" for key in used)


def test_notes_and_caveats_are_shown_once(page: Page) -> None:
    assert page.text.count("the last batch of an epoch holds 93") == 1
    assert page.text.count("scratch inside kernels is not traced") == 1


def test_equal_records_give_equal_pages(html: str) -> None:
    again = render_report(records.measurements(), records.plan(), RUNS, folder=Path("demo"))
    assert again == html


def test_an_undecided_noise_scale_is_said_in_words(html: str) -> None:
    text = Page(render_report(records.measurements(undecided=True), records.plan())).text
    assert "at least 116" in text
    assert "not bounded above" in text
    assert "undecided 1,250 open" in text
    assert "the upper end is an assumption" in text


def test_without_a_plan_the_page_says_what_is_missing() -> None:
    text = Page(render_report(records.measurements(), None)).text
    assert "digits was measured but not planned: no batch size is recommended yet." in text
    assert "Finish the measurement and make the plan" in text
    assert "The plan " not in text


def test_without_any_sample_the_page_has_no_figure_and_no_script() -> None:
    empty = Measurements(task=records.task_facts(), environment=records.environment())
    page = Page(render_report(empty, None))
    assert page.scripts == []
    assert page.text.count("not measured") == 3
    assert "What sets the pace is not known" in page.text


@pytest.mark.parametrize("payload", HOSTILE)
def test_text_from_records_never_becomes_markup(payload: str, page: Page) -> None:
    measurements = Measurements(**poisoned(records.measurements(), payload))
    plan = Plan(**poisoned(records.plan(), payload))
    target = measurements.task.target
    assert target is not None
    runs = [
        history(
            payload + name,
            batch,
            message=payload,
            target=target,
            evaluations=[
                e.replace(metrics={target.metric: e.metrics["accuracy"]})
                for e in records.run(name, batch).evaluations
            ],
        )
        for name, batch in (("plan", 96), ("recipe", 32))
    ]
    assert payload in plan.decisions[0].reason
    hostile = Page(render_report(measurements, plan, runs, folder=Path(f"demo{payload}")))
    assert hostile.tags == page.tags
    assert hostile.scripts == page.scripts
    assert payload in "".join(hostile.words)
    assert all("<" not in block for block in hostile.blocks)


@pytest.mark.parametrize("payload", HOSTILE)
def test_a_source_key_never_ends_its_attribute(payload: str) -> None:
    def tags(key: str) -> list[tuple[str, tuple[str, ...]]]:
        decision = records.plan().decisions[0].replace(source=key)
        plan = records.plan(decisions=(decision,))
        return Page(render_report(records.measurements(), plan)).tags

    assert tags(payload) == tags("unknown")


def test_figure_data_never_ends_its_script(monkeypatch: pytest.MonkeyPatch, page: Page) -> None:
    def hostile_json(figure: object) -> str:
        return '{"data": "</script><b>"}'

    monkeypatch.setattr("plotly.basedatatypes.BaseFigure.to_json", hostile_json)
    hostile = Page(render_report(records.measurements(), records.plan(), RUNS))
    assert hostile.tags == page.tags
    assert json.loads(hostile.blocks[0]) == {"data": "</script><b>"}


_CLOSED = {"evidence", "source", "optimizer_family", "phases", "owners", "schedule", "sampler",
           "precision", "objective", "complete", "schema_version"}  # fmt: skip


def poisoned(record: Record, payload: str) -> dict[str, Any]:
    """The record's values with the payload at the end of every free text."""

    def poison(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {name: poison(part, str(name)) for name, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [poison(part, key) for part in value]
        return value + payload if isinstance(value, str) and key not in _CLOSED else value

    return poison(record.model_dump(), "")


def save(folder: Path) -> None:
    write_record(folder / "measurements.json", records.measurements())
    write_record(folder / "plan.json", records.plan())
    write_record(folder / "runs" / "plan" / "outcome.json", records.run())


def test_a_report_is_rebuilt_from_the_records_in_a_folder(tmp_path: Path) -> None:
    save(tmp_path)
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    again = render_report(records.measurements(), records.plan(), read_runs(tmp_path), folder=tmp_path)
    assert path.read_text(encoding="utf-8") == again


def test_a_folder_without_measurements_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot read .*measurements\.json"):
        write_report(tmp_path)


def test_a_run_without_an_outcome_shows_what_it_logged(tmp_path: Path) -> None:
    save(tmp_path)
    killed = tmp_path / "runs" / "killed"
    write_record(killed / "plan.json", records.plan())
    lines = [
        '{"examples": 96, "updates": 1, "seconds": 0.1, "loss": 2.0, "learning_rate": 0.001}',
        '{"examples": 1437, "updates": 15, "seconds": 1, "train_loss": 2, "metrics": {"accuracy": 0}}',
        '{"examples": 2874, "upda',
    ]
    (killed / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    killed_run, finished = read_runs(tmp_path)
    assert (killed_run.name, killed_run.outcome) == ("killed", "no outcome recorded")
    assert [e.examples for e in killed_run.evaluations] == [1437]
    assert finished.outcome == Outcome.TARGET_REACHED.replace("_", " ")
    assert "killed no outcome recorded 96 1,437" in Page(write_report(tmp_path).read_text()).text


def test_a_damaged_line_is_refused_with_its_number(tmp_path: Path) -> None:
    write_record(tmp_path / "runs" / "bad" / "plan.json", records.plan())
    (tmp_path / "runs" / "bad" / "metrics.jsonl").write_text("{}\nnonsense\n{}\n", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"metrics\.jsonl:2: no JSON"):
        read_runs(tmp_path)


def test_without_plotly_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(name: str) -> None: ...

    monkeypatch.setattr("importlib.util.find_spec", find_nothing)
    with pytest.raises(MissingPackageError, match=r"pip install 'rightbatch\[report\]'"):
        render_report(records.measurements(), None)


def test_importing_the_report_draws_in_neither_plotly_nor_torch() -> None:
    code = (
        "import sys, rightbatch.report.html, rightbatch.report.terminal;"
        "print([m for m in ('plotly', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
