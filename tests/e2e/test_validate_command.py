"""``rightbatch validate`` and ``critical`` as commands: documents, exit codes, bad input."""

import sys
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


def test_remedies_are_tried_on_request_and_stand_in_the_answer_the_document_and_the_page(
    spec: str,
) -> None:
    asked = ("validate", spec, "--batch", "16", "--seeds", "2", "--margin", "1e-9", "--remedy")
    called = run_cli(*asked)
    assert called.code == 1, called.err
    assert "the model has no BatchNorm" in called.out
    assert "hold together with 95 %" in called.out
    found = run_cli(*asked, "--json").document
    results = {result["remedy"]["name"]: result for result in found["remedies"]["results"]}
    assert results["ghost batch norm"]["verdict"] == "does not apply"
    assert results["longer training"]["examples_ratio"] == pytest.approx(2, rel=0.1)
    assert "validate.html" in found["files"]["page"]
    assert "What the remedies did" in Path(found["files"]["page"]).read_text()


def test_a_budget_answers_with_what_is_there_and_the_same_command_goes_on(spec: str) -> None:
    asked = ("validate", spec, "--batch", "16", "--seeds", "3", "--margin", "5", "--budget", "5runs")
    called = run_cli(*asked)
    assert called.code == 1, called.err
    assert called.out.startswith("Equivalent: mse ")
    assert "The budget ended before 1 of the runs asked for" in called.out
    again = run_cli(*asked, "--json")
    assert (again.code, again.document["unfinished_runs"]) == (0, 0)


def test_without_plotly_the_verdict_is_given_and_the_missing_page_explained(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    called = run_cli("validate", spec, "--batch", "16", "--seeds", "2", "--margin", "5", "--json")
    assert called.code == 0, called.err
    assert "no page was drawn: plotly is not installed" in called.err
    assert "page" not in called.document["files"]


@pytest.mark.parametrize(
    ("options", "found", "hint"),
    [
        (["--batch", "16", "--budget", "0runs"], "--budget '0runs'", "write 20runs, or 10m"),
        (["--batch", "16", "--budget", "soon"], "--budget 'soon'", "write 20runs, or 10m"),
        (["--sweep", "2:8", "--budget", "soon"], "--budget 'soon'", "write 20runs, or 10m"),
        (["--sweep", "2:8", "--remedy"], "--remedy with --sweep", "--batch 256"),
        (
            ["--sweep", "2:8", "--against", "x.toml", "--margin", "-3", "--matched-by", "time"],
            "--against, --margin, --matched-by with --sweep",
            "--batch 256",
        ),
        (
            ["--sweep", "2:8", "--tune-lr", "zzz", "--sharpness"],
            "--tune-lr, --sharpness with --sweep",
            "--batch 256",
        ),
        (["--sweep", "2:8", "--rates", "0"], "0 rates", "--rates 5"),
        (["--batch", "16", "--seeds", "1"], "1 seed(s)", "--seeds 3"),
        (["--batch", "16", "--margin", "0"], "margin = 0", "--margin 0.005"),
        ([], "nothing to compare", "--batch 256"),
        (["--batch", "16", "--sweep", "2:8"], "--batch and --sweep together", "--batch 256"),
        (["--batch", "16", "--against", "batch=none"], "batch=none", "--against batch=256"),
        (["--batch", "16", "--against", "nowhere.toml"], "cannot read nowhere.toml", "rightbatch plan"),
        (["--batch", "64"], "batch 64 with 48 training examples", "choose another"),
        (["--sweep", "8"], "'8'", "write 8:512"),
        (["--sweep", "8:64"], "to the 48 training", "--sweep 8:512"),
        (["--sweep", "2:8", "--rates", "4"], "4 rates", "--rates 5"),
        (["--batch", "16", "--rates", "5"], "--rates 5 without --sweep", "--sweep 8:512"),
        (["--batch", "16", "--workers", "0"], "--workers '0'", "--workers 2"),
        (["--sweep", "2:8", "--workers", "many"], "--workers 'many'", "--workers 2"),
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


def test_a_sweep_without_a_bend_answers_with_its_runs_and_is_undecided(spec: str) -> None:
    called = run_cli("validate", spec, "--sweep", "4:16", "--seeds", "1", "--out", "s")
    assert called.code == 1
    assert "or more" in called.out
    assert "sweep larger batches" in called.out
    assert Path("s/sweep.json").exists()
    assert Path("s/sweep.html").exists()


def test_a_sweep_answers_with_a_fit_and_without_plotly_it_says_why_there_is_no_picture(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("validate", spec, "--sweep", "4:16", "--seeds", "2", "--out", "s")
    drawn = run_cli(*asked, "--json")
    assert drawn.code in {0, 1}, drawn.err
    assert "Plotly.newPlot" in Path(drawn.document["files"]["picture"]).read_text()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "rightbatch.report.steps_plot", None)
    bare = run_cli(*asked, "--json")
    assert bare.code == drawn.code, bare.err
    assert "no picture was drawn: plotly is not installed" in bare.err
    assert bare.document["files"].keys() == {"sweep"}
    assert bare.document["points"] == drawn.document["points"]


def test_a_sweep_with_a_budget_stops_there_and_the_next_call_goes_on(spec: str) -> None:
    asked = ("validate", spec, "--sweep", "4:16", "--seeds", "2", "--out")
    first = run_cli(*asked, "s", "--budget", "5runs")
    assert_three_parts(
        first, code=1, found="ended with 5 of about 24 runs", need="all of them", hint="again: s"
    )
    rest = run_cli(*asked, "s", "--budget", "1h", "--json")
    whole = run_cli(*asked, "whole", "--json")
    assert rest.document["points"] == whole.document["points"]
    assert len(rest.document["arms"]) == len(whole.document["arms"])


def test_workers_make_the_same_runs(spec: str) -> None:
    options = ("--batch", "16", "--seeds", "2", "--json")
    alone = run_cli("validate", spec, *options, "--out", "alone").document
    crew = run_cli("validate", spec, *options, "--out", "crew", "--workers", "2").document
    assert [run["metrics"] for run in crew["runs"]] == [run["metrics"] for run in alone["runs"]]


def test_branches_answer_with_an_interval(spec: str) -> None:
    called = run_cli("critical", spec, "--batch", "4:16", "--points", "0,0.5", "--seeds", "2", "--json")
    assert called.code in {0, 1}, called.err
    points = called.document["points"]
    assert [point["examples_seen"] for point in points] == [0, 120]
    assert called.document["definition"]["name"] == "B*"
    assert "Plotly.newPlot" in Path(called.document["files"]["picture"]).read_text()
    refused = run_cli("critical", spec, "--points", "x")
    assert_three_parts(refused, code=2, found="--points 'x'", need="shares", hint="0.05,0.5")


def test_branches_begin_at_the_checkpoints_of_a_run(spec: str) -> None:
    trained = run_cli("train", spec, "--run", "run", "--checkpoint-every", "0.001s", "--keep", "2")
    assert trained.code in {0, 1}, trained.err
    kept = sorted(Path("run/checkpoints").glob("update-*.json"))
    called = run_cli(
        "critical", spec, "--batch", "4:16", "--checkpoint", "run", "--seeds", "2", "--json"
    )
    assert called.code in {0, 1}, called.err
    assert len(called.document["checkpoints"]) == len(called.document["points"]) == len(kept) == 2
    both = run_cli("critical", spec, "--points", "0.1", "--checkpoint", "run")
    assert_three_parts(
        both, code=2, found="--points 0.1 and --checkpoint run", need="one", hint="leave"
    )
