"""``rightbatch validate`` and ``critical`` as commands: documents, exit codes, bad input."""

from pathlib import Path

import pytest

from cli_runner import assert_three_parts, run_cli

TASK = """
import sys
sys.path.insert(0, {tests!r})
import tiny
from rightbatch.core.recipe import Recipe, Target

def make_task():
    recipe = Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=5)
    return tiny.task(recipe=recipe, target=Target("mse", 0.5, higher_is_better=False))
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task.py").write_text(TASK.format(tests=str(Path(__file__).parents[1])))
    return "my_task.py"


def test_a_comparison_prints_its_verdict_and_keeps_the_stable_keys(spec: str) -> None:
    called = run_cli("validate", spec, "--batch", "16", "--seeds", "2", "--margin", "5", "--json")
    assert called.code == 0, called.err
    found = called.document
    assert found["schema_version"] == 1
    assert found["task"] == "tiny"
    assert found["verdict"] == "equivalent"
    assert found["difference"]["low"] < found["difference"]["value"] < found["difference"]["high"]
    assert (found["margin"], found["matched_by"], len(found["runs"])) == (5.0, "examples", 4)
    assert Path(found["files"]["comparison"]).exists()
    again = run_cli("validate", spec, "--batch", "16", "--seeds", "2", "--margin", "5")
    assert again.code == 0
    assert again.out.startswith("Equivalent: mse ")
    assert "Generalization gap of the candidate" in again.out


def test_an_undecided_comparison_exits_1_and_says_how_many_seeds_would_decide(spec: str) -> None:
    called = run_cli("validate", spec, "--batch", "16", "--seeds", "2", "--margin", "1e-9")
    assert called.code == 1
    assert called.out.startswith("Undecided: mse ")
    assert "more seed(s) would decide: --seeds" in called.out


def test_sharpness_is_printed_with_what_it_cannot_say(spec: str) -> None:
    called = run_cli("validate", spec, "--batch", "16", "--seeds", "2", "--sharpness")
    assert called.code in {0, 1}, called.err
    assert "Sharpness of the candidate: largest eigenvalue" in called.out
    assert "does not explain a difference in accuracy" in called.out


@pytest.mark.parametrize(
    ("options", "found", "hint"),
    [
        (["--batch", "16", "--seeds", "1"], "1 seed(s)", "--seeds 3"),
        (["--batch", "16", "--margin", "0"], "margin = 0", "--margin 0.005"),
        ([], "nothing to compare", "--batch 256"),
        (["--batch", "16", "--sweep", "2:8"], "--batch and --sweep together", "--batch 256"),
        (["--batch", "16", "--against", "batch=none"], "batch=none", "--against batch=256"),
        (["--batch", "16", "--against", "nowhere.toml"], "cannot read nowhere.toml", "rightbatch plan"),
        (["--batch", "64"], "batch 64 with 48 training examples", "choose another"),
        (["--sweep", "8"], "'8'", "write 8:512"),
        (["--sweep", "8:64"], "to the 48 training", "--sweep 8:512"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_three_parts(
    options: list[str], found: str, hint: str, spec: str
) -> None:
    called = run_cli("validate", spec, *options)
    assert called.code == 2
    if found.startswith("to the 48"):
        assert found in called.err
    else:
        assert_three_parts(called, code=2, found=found, need="", hint=hint)


def test_a_sweep_without_a_bend_says_so_and_keeps_every_run(spec: str) -> None:
    called = run_cli("validate", spec, "--sweep", "4:16", "--seeds", "1", "--out", "s")
    assert called.code == 2
    assert "need a bend inside the sweep" in called.err
    assert [*Path("s/arms").glob("*.json")]


def test_branches_answer_with_an_interval(spec: str) -> None:
    called = run_cli("critical", spec, "--batch", "4:16", "--points", "0,0.5", "--seeds", "2", "--json")
    assert called.code in {0, 1}, called.err
    points = called.document["points"]
    assert [point["examples_seen"] for point in points] == [0, 120]
    assert called.document["definition"]["name"] == "B*"
    refused = run_cli("critical", spec, "--points", "x")
    assert_three_parts(refused, code=2, found="--points 'x'", need="shares", hint="0.05,0.5")
