"""``rightbatch advise`` as installed: advice, sayings, situations, and the questions it asks."""

from pathlib import Path

import pytest

from cli_runner import assert_three_parts, run_cli


def test_nothing_known_gives_a_start_that_says_how_little_is_known() -> None:
    called = run_cli("advise", "--json")
    assert called.code == 0
    lines = {line["name"]: line for line in called.document["advice"]}
    assert {"global_batch_size", "micro_batch_size", "learning_rate"} <= set(lines)
    assert {line["evidence"] for line in lines.values()} == {"assumed"}
    assert all(line["measure_with"].startswith("rightbatch ") for line in lines.values())
    assert lines["global_batch_size"]["high"] / lines["global_batch_size"]["low"] > 100


def test_a_use_case_fills_in_what_is_not_given() -> None:
    implied = run_cli("advise", "--use-case", "distributed", "--json").document
    assert implied["objective"] == "time"
    given = run_cli("advise", "--use-case", "distributed", "--objective", "compute", "--json").document
    assert given["objective"] == "compute"
    assert "commonly advised is" in run_cli("advise", "--use-case", "cpu").out


def test_a_saying_is_answered_and_with_a_folder_in_its_own_numbers(saved: Path) -> None:
    bare = run_cli("advise", "--ask", "just use the largest batch that fits?", "--json").document
    assert (bare["verdict"], bare["measured"]) == ("no", None)
    run_cli("plan", saved)
    ask = ("advise", "--ask", "just use the largest batch that fits?", "--measurements", saved)
    assert "x the time of the planned" in run_cli(*ask, "--json").document["measured"]
    assert "Measured: on digits" in run_cli(*ask).out


@pytest.mark.parametrize(
    ("arguments", "found", "need", "hint"),
    [
        (("--ask", "how do I bake bread"), "bake bread", "a known saying", "nearest are"),
        (("--use-case", "baking"), "--use-case baking", "a known situation", "use one of"),
        (("--measurements", "demo"), "without --ask", "a question", "rightbatch plan demo"),
        (("--device", "cuda:z100"), "cuda:z100", "an accelerator", "did you mean"),
        (("--positives", "0"), "--positives 0", "between 0 and 1", "0.001"),
        (("--batch", "-3"), "--batch -3", "a positive number", "change --batch"),
        (("--optimizer", "adamm"), "--optimizer adamm", "torch.optim", "did you mean"),
        (("--hf-config", "missing.json", "--seq", "8"), "missing.json", "a JSON file", "config.json"),
    ],
)
def test_bad_input_ends_in_three_parts(
    arguments: tuple[str, ...], found: str, need: str, hint: str
) -> None:
    called = run_cli("advise", *arguments)
    assert_three_parts(called, code=2, found=found, need=need, hint=hint)


def test_an_answer_says_which_saying_it_answers_and_cites_measurements_only_where_given() -> None:
    called = run_cli("advise", "--ask", "is gradient accumulation slow?")
    assert "Taken for: gradient accumulation is slow, don't use it." in called.out
    assert "Source" not in called.out


def test_what_is_given_counts_more_than_what_a_use_case_implies() -> None:
    argv = ["advise", "--use-case", "distributed", "--json"]
    implied, given = (run_cli(*argv, *more).document for more in ((), ("--replicas", "1")))
    sizes = [
        {line["name"]: line["value"] for line in document["advice"]} for document in (implied, given)
    ]
    assert sizes[0]["micro_batch_size"] * 8 == sizes[0]["global_batch_size"]
    assert sizes[1]["micro_batch_size"] == sizes[1]["global_batch_size"]
    alone = run_cli("advise", "--batch", "32", "--json").document["advice"]
    assert {line["name"]: line["value"] for line in alone}["micro_batch_size"] == 32
