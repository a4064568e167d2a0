"""``rightbatch memory TASK --what-if``: one document, one table, and errors in three parts."""

import importlib
from typing import Any

import pytest

from cli_runner import assert_three_parts, run_cli
from rightbatch.measure.memory.variants import Variant, variants

OPTIONS = ("sgd", "fused optimizer", "checkpointing")
KEYS = {
    "option",
    "peak_bytes",
    "saved_bytes",
    "max_micro_batch_size",
    "seconds_ratio",
    "evidence",
    "note",
}


@pytest.fixture(autouse=True)
def few_options(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(today: Variant, accelerator: Any) -> list[Variant]:
        return [v for v in variants(today, accelerator) if v.option in OPTIONS]

    module = importlib.import_module("rightbatch.measure.memory.what_if")
    monkeypatch.setattr(module, "variants", few)


def test_options_are_ranked_and_the_untraceable_are_named() -> None:
    document = run_cli("memory", "digits", "--what-if", "--limit", "1GiB", "--json").document
    assert (document["task"], document["micro_batch_size"]) == ("digits", 32)
    rows = document["what_if"]
    assert [row["option"] for row in rows] == ["today", "sgd", "fused optimizer", "checkpointing"]
    assert all(set(row) >= KEYS for row in rows)
    assert rows[1]["saved_bytes"] == rows[0]["peak_bytes"] - rows[1]["peak_bytes"] > 0
    assert rows[3]["note"] == "cannot be traced: no block of Sequential is repeated"


def test_the_table_says_where_its_numbers_come_from() -> None:
    text = run_cli("memory", "digits", "--what-if", "--batch", "8").out
    assert "Today's micro-batch is 8." in text
    assert "checkpointing: cannot be traced: no block of Sequential is repeated" in text
    assert "Bytes are traced from steps that were" in text


def test_an_accelerator_that_is_not_here_is_traced() -> None:
    document = run_cli("memory", "digits", "--what-if", "--device", "cuda:t4", "--json").document
    assert (document["device"], document["what_if"][0]["evidence"]) == ("cuda:t4", "derived")


@pytest.mark.parametrize(
    ("argv", "found", "hint"),
    [
        (["digits", "--batch", "8,16"], "--batch 8,16 with --what-if", "--batch 8"),
        (["digits", "--device", "cuda:mi300x"], "--what-if on cuda:mi300x", "--device cuda:h100-80gb"),
        (["digits", "--verify"], "--what-if with --verify", "leave one out"),
        (["saved.json"], "--what-if with saved measurements", "name the task"),
    ],
)
def test_what_cannot_be_asked_is_refused(argv: list[str], found: str, hint: str) -> None:
    called = run_cli("memory", *argv, "--what-if")
    assert_three_parts(called, code=2, found=found, need="", hint=hint)
