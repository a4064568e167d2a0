"""The parts of the page that need no figure, each a pure function from records to markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rightbatch.core.plan import Decision, Plan
from rightbatch.core.recipe import Recipe
from rightbatch.core.samples import Measurements
from rightbatch.core.sources import SOURCES, Source
from rightbatch.core.units import format_bytes, format_number, format_seconds
from rightbatch.fit.models import Models
from rightbatch.report.markup import Html, join, tag, with_code
from rightbatch.report.sentences import loader_verdict, noise_text, percent
from rightbatch.report.tables import Table, decision_text, memory_limit_bytes, today_text

_EVIDENCE = {
    "measured": "on this task and this machine",
    "derived": "from measurements, by a cited formula",
    "assumed": "by a rule that was not tested here, or kept from today's recipe",
}
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def render_notes(lines: Iterable[str]) -> Html:
    """Warnings beside the answer, each once; nothing where there are none."""
    unique = [tag("li", with_code(line)) for line in dict.fromkeys(lines)]
    return tag("ul", *unique, class_="notes") if unique else Html()


def render_steps(steps: Sequence[str]) -> Html:
    """What to do next, in order, each command on a line of its own."""
    return tag("ol", *(tag("li", with_code(step)) for step in steps), class_="next")


def render_facts(measurements: Measurements, models: Models, plan: Plan | None) -> Html:
    """The handful of numbers behind the answer; what was not measured says so."""
    cells = [
        ("Memory at the peak", *_memory_fact(measurements, models, plan)),
        ("Throughput knee", *_knee_fact(models)),
        ("Noise scale", *_noise_fact(models)),
        ("Critical batch size", *_critical_fact(models)),
        ("One optimizer step", *_update_fact(plan)),
        ("Loader", *_loader_fact(models, plan)),
    ]
    groups = [
        tag("div", tag("dt", name), tag("dd", tag("b", value), tag("span", words)))
        for name, value, words in cells
    ]
    return tag("dl", *groups, class_="facts")


def render_decisions(decisions: Sequence[Decision], recipe: Recipe) -> Html:
    """Every planned value with today's beside it, its evidence, rule, source and reason."""
    columns = ("value", "plan", "today", "evidence", "why")
    head = tag("thead", tag("tr", *(tag("th", column) for column in columns)))
    rows = [
        tag(
            "tr",
            tag("td", d.name),
            tag("td", decision_text(d), class_="value", data_label="plan"),
            tag("td", today_text(d.name, recipe), data_label="today"),
            tag("td", tag("span", d.evidence, class_=f"badge {d.evidence}")),
            tag(
                "td",
                d.reason,
                tag("span", f"Rule: {d.rule}"),
                tag("span", "Source: ", _source_title(d.source)),
                class_="why",
            ),
        )
        for d in decisions
    ]
    table = tag("table", head, tag("tbody", *rows), class_="decisions")
    words = [
        join([tag("span", word, class_=f"badge {word}"), f" {meaning}"])
        for word, meaning in _EVIDENCE.items()
    ]
    legend = join(part for word in words for part in (word, Html("; ")))
    return join([
        tag("div", table, class_="scroll"),
        tag("p", Html(legend.removesuffix("; ") + "."), class_="legend"),
    ])


def render_table(table: Table) -> Html:
    """A table that scrolls sideways where the screen is narrow."""

    def cell(name: str, column: str, text: str) -> Html:
        return tag(name, text) if column in table.words else tag(name, text, class_="number")

    head = [tag("thead", tag("tr", *(cell("th", column, column) for column in table.columns)))]
    rows = [
        tag("tr", *(cell("td", c, text) for c, text in zip(table.columns, row, strict=True)))
        for row in table.rows
    ]
    return tag(
        "div", tag("table", *(head if any(table.columns) else ()), tag("tbody", *rows)), class_="scroll"
    )


def render_sources(keys: Iterable[str]) -> Html:
    """The works that this page's numbers rest on, and what for."""
    items: list[Html] = []
    for key in dict.fromkeys(keys):
        source = SOURCES.get(key, Source(key, "not in the list of sources", ""))
        found = _ARXIV.search(source.where)
        where = (
            tag("a", source.where, href=f"https://arxiv.org/abs/{found[1]}") if found else source.where
        )
        used = f": {source.used_for}" if source.used_for else ""
        items.append(tag("li", source.title, ", ", where, used, id=f"source-{key}"))
    return tag("ul", *items)


def cited_sources(models: Models, plan: Plan | None) -> list[str]:
    """Keys of the works that the decisions and the fitted models rest on."""
    keys = [decision.source for decision in plan.decisions] if plan else []
    fitted = (
        ("measured", models.speed or models.loader),
        ("memory_law", models.memory),
        ("mccandlish2018", models.noise),
        ("noise_calibration", models.steps),
    )
    return [*keys, *(key for key, model in fitted if model)]


def _source_title(key: str) -> Html:
    title = SOURCES[key].title if key in SOURCES else key
    return tag("a", title, href=f"#source-{key}")


def _memory_fact(measurements: Measurements, models: Models, plan: Plan | None) -> tuple[str, str]:
    if models.memory is None:
        return "not measured", "no traces"
    size = plan.micro_batch_size if plan else measurements.task.recipe.batch_size
    peak, high = models.memory.peak_bytes(size), models.memory.high_bytes(size)
    limit = memory_limit_bytes(measurements, plan)
    bound = f", at most {format_bytes(high)}" if high > peak else ""
    share = f"{percent(high / limit)} of the limit of {format_bytes(limit)}"
    return format_bytes(peak), f"at micro-batch {size:,}{bound}: {share}"


def _knee_fact(models: Models) -> tuple[str, str]:
    if models.speed is None:
        return "not measured", "no timed steps"
    knee = models.speed.knee_micro_batch_size
    rate = format_number(float(f"{models.speed.examples_per_second(knee):.3g}"))
    last = "; none larger was timed" if knee == models.speed.valid_range[1] else ""
    return f"micro-batch {knee:,}", f"within 10 % of the best throughput: {rate} examples/s{last}"


def _noise_fact(models: Models) -> tuple[str, str]:
    if models.noise is None:
        return "not measured", "no gradient samples"
    words = "" if models.noise.decided else ", not bounded above"
    return noise_text(models.noise), f"examples, mean over the pilot{words}"


def _critical_fact(models: Models) -> tuple[str, str]:
    steps = models.steps
    if steps is None:
        return "not known", "needs the noise scale"
    span = f"{format_number(round(steps.low))} to {format_number(round(steps.high))}"
    words = f"examples: {steps.calibration:g} x the noise scale, as in sweeps of small networks"
    if not steps.decided:
        return span, words + "; the upper end is an assumption"
    return f"{format_number(round(steps.critical_batch_size))} ({span})", words


def _update_fact(plan: Plan | None) -> tuple[str, str]:
    for candidate in plan.candidates if plan else ():
        batch = candidate.global_batch_size
        if plan and batch == plan.global_batch_size:
            rate = format_number(float(f"{batch / candidate.update_seconds:.3g}"))
            words = f"loading, every micro-batch and the update: {rate} examples/s"
            return format_seconds(candidate.update_seconds), words
    return "not known", "needs a plan"


def _loader_fact(models: Models, plan: Plan | None) -> tuple[str, str]:
    headline, _, rest = loader_verdict(models, plan).partition(":")
    return headline.removesuffix("."), rest.strip()
