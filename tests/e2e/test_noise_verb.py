"""``rightbatch noise``: every part of its answer, from saved samples and from a task of one's own."""

from pathlib import Path

import pytest

from cli_runner import assert_three_parts, run_cli
from rightbatch.fit.calibration import calibrate

FACTOR = calibrate("adam", preconditioned=True).factor
RARE = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import rightbatch as rb

torch.set_num_threads(1)


def per_position(model, batch):
    x, y = batch
    return F.binary_cross_entropy_with_logits(model(x), y, reduction="none"), y


def loss(model, batch):
    losses, _ = per_position(model, batch)
    return rb.Loss(losses.sum(), losses.numel())


def positive_loss(model, batch):
    losses, y = per_position(model, batch)
    return rb.Loss((losses * y).sum(), y.sum())


def make_task():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=generator)
    y = (x @ torch.randn(4, 6, generator=generator) > 2.5).float()
    return rb.Task(
        name="rare",
        model=lambda: nn.Linear(4, 6),
        train_data=TensorDataset(x, y),
        valid_data=None,
        loss=loss,
        POSITIVES
        recipe=rb.Recipe(optimizer="adamw", lr=0.01, batch_size=16, epochs=4),
    )
"""


def write(folder: Path, positives: str = "positive_loss=positive_loss,") -> Path:
    path = folder / "rare.py"
    path.write_text(RARE.replace("POSITIVES", positives))
    return path


def test_saved_samples_give_points_heading_gains_and_the_critical_batch_size(saved: Path) -> None:
    document = run_cli("noise", saved, "--json").document
    heading = document["heading"]
    assert heading["direction"] == "growing"
    assert 0 < heading["low"] < heading["exponent"] < heading["high"]
    assert document["unit"] == {"name": "examples", "targets_per_example": 1.0}
    assert document["batch_size"] == 32
    critical = document["critical_batch_size"]
    assert critical["low"] < critical["value"] < critical["high"]
    assert critical["value"] == pytest.approx(FACTOR * document["summary"]["noise_scale"])
    assert [gain["batch_size"] for gain in document["gains"]] == [4, 8, 16, 32, 64, 128, 256]
    today = document["gains"][3]
    assert today["steps_ratio"] == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0})
    share = today["progress_per_step"]["value"]
    assert share == pytest.approx(1 / (1 + critical["value"] / 32))
    assert (document["precision"], document["sparse"], document["coupling"]) == (None, [], None)
    assert document["files"] == {"report": None}


def test_people_get_a_chart_and_sentences(saved: Path) -> None:
    called = run_cli("noise", saved, "--precision-wanted", "1%")
    assert called.code == 0
    lines = called.out.splitlines()
    drawn = [line for line in lines if "●" in line]
    assert len(drawn) == 6
    places = [line.index("●") for line in drawn]
    assert places == sorted(places)  # it grows, and so it is drawn
    assert any("The noise scale is growing: x" in line for line in lines)
    assert any(line.rstrip().endswith("today") for line in lines)
    assert any("An interval of 1 % either way takes about" in line for line in lines)
    assert any(f"{FACTOR:g} x the noise scale, within a factor of 1." in line for line in lines)


def test_the_wanted_precision_is_forecast_in_samples(saved: Path) -> None:
    few = run_cli("noise", saved, "--precision-wanted", "2%", "--json").document["precision"]
    many = run_cli("noise", saved, "--precision-wanted", "0.01", "--json").document["precision"]
    assert (few["relative_error"], many["relative_error"]) == (0.02, 0.01)
    assert many["more_samples"] + 72 == pytest.approx(4 * (few["more_samples"] + 72), rel=0.03)
    assert few["more_seconds"] is None  # nothing was timed in these records


def test_an_undecided_scale_is_drawn_open_and_its_gains_reach_the_limit(undecided: Path) -> None:
    document = run_cli("noise", undecided, "--json").document
    assert document["critical_batch_size"]["value"] is None
    assert document["critical_batch_size"]["high"] is None
    assert document["gains"][-1]["steps_ratio"]["low"] == pytest.approx(32 / 256)
    assert document["heading"]["num_undecided"] == 1
    text = run_cli("noise", undecided).out
    assert "→" in text
    assert "1 point(s) without an upper bound" in text


def test_out_keeps_measurements_and_a_report(saved: Path, tmp_path: Path) -> None:
    called = run_cli("noise", saved, "--out", tmp_path / "kept", "--json")
    report = tmp_path / "kept" / "report.html"
    assert called.document["files"] == {"report": str(report)}
    assert "The noise scale is growing" in report.read_text(encoding="utf-8")
    assert run_cli("noise", tmp_path / "kept", "--json").document == called.document | {
        "files": {"report": None}
    }


def test_a_task_with_positives_and_dense_targets_is_seen_in_all_units(tmp_path: Path) -> None:
    document = run_cli("noise", write(tmp_path), "--time-budget", "4s", "--json").document
    assert document["unit"]["targets_per_example"] == 6.0
    summary = document["summary"]
    assert summary["low_targets"] == pytest.approx(6 * summary["low"])
    assert len(document["sparse"]) == len(document["points"])
    for point in document["sparse"]:
        assert 0 < point["positives_per_example"] < 3
        assert point["positives"]["low"] >= 0


def test_text_of_a_sparse_task_counts_targets_and_positives(tmp_path: Path) -> None:
    text = run_cli("noise", write(tmp_path), "--time-budget", "2s").out
    assert "An example holds 6 counted targets on average" in text
    assert "cos(G+, G-)" in text
    assert "positive targets on average" in text


@pytest.mark.parametrize(
    ("positives", "found"),
    [
        ("positive_loss=lambda m, b: loss(m, b).total,", "positive_loss Tensor"),
        (
            "positive_loss=lambda m, b: rb.Loss(loss(m, b).total, 99),",
            "positive_loss counts 99 of 12 targets",
        ),
    ],
)
def test_a_positive_loss_that_is_no_part_of_the_loss_is_refused(
    tmp_path: Path, positives: str, found: str
) -> None:
    called = run_cli("noise", write(tmp_path, positives), "--time-budget", "2s")
    assert_three_parts(called, code=2, found=found, need="", hint="")


@pytest.mark.parametrize("wanted", ["0", "-5%", "much", "nan", "inf"])
def test_a_precision_that_is_no_share_is_refused(saved: Path, wanted: str) -> None:
    called = run_cli("noise", saved, f"--precision-wanted={wanted}")
    found = f"--precision-wanted '{wanted}'"
    assert_three_parts(called, code=2, found=found, need="a positive share", hint="20% or 0.2")
