"""What the optimizer sees of the positives, on tasks where it can be worked out."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.core.progress import Progress
from rightbatch.core.recipe import Recipe, Target
from rightbatch.core.signal import Signal
from rightbatch.report.signal import comparison_table, signal_sentences, update_table
from rightbatch.sparse.diagnose import measure_signal
from rightbatch.sparse.losses import cross_entropy, focal_loss
from rightbatch.sparse.priors import prior_bias_
from rightbatch.sparse.windows import LabelledSequences, RandomWindows
from rightbatch.tasks.check import check_task
from rightbatch.tasks.task import Loss, Task

torch.set_num_threads(1)
LENGTH = 20


class Flat(nn.Module):
    """One logit for each position; starts at ``bias`` everywhere."""

    def __init__(self, prior: float | None = None) -> None:
        super().__init__()
        self.head = nn.Conv1d(1, 1, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        if prior is not None:
            prior_bias_(self.head, prior)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.unsqueeze(1).float()).squeeze(1)


def loss(model: nn.Module, batch: Any) -> Loss:
    return cross_entropy(model(batch[0]), batch[1])


def positive_loss(model: nn.Module, batch: Any) -> Loss:
    return cross_entropy(model(batch[0]), batch[1], part="positives")


def examples(num: int = 512, fraction: float = 0.02) -> TensorDataset:
    """Positions that are positive where the input is high, and by chance."""
    g = torch.Generator().manual_seed(0)
    y = (torch.rand(num, LENGTH, generator=g) < fraction).long()
    return TensorDataset(torch.randn(num, LENGTH, generator=g) + 2 * y, y)


def task(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "name": "rare",
        "model": Flat,
        "train_data": examples(),
        "valid_data": examples(64),
        "loss": loss,
        "positive_loss": positive_loss,
        "recipe": Recipe(optimizer="sgd", lr=0.1, batch_size=8, epochs=1),
    }
    return Task(**(values | changes))


def test_the_mass_of_the_gradient_is_the_share_of_positives_at_half_and_one_half_at_the_prior() -> None:
    fraction = float(task().train_data.tensors[1].double().mean())  # type: ignore[attr-defined]
    flat = measure_signal(task(), [8], num_examples=256)
    # at p = 1/2 every position pulls its logit equally hard
    assert flat.gradients[0].mass_share == pytest.approx(fraction, rel=0.35)
    biased = measure_signal(task(model=lambda: Flat(fraction)), [8], num_examples=256)
    assert biased.gradients[0].mass_share == pytest.approx(0.5, abs=0.09)
    assert biased.positive_fraction == pytest.approx(fraction, rel=0.1)
    assert (biased.counts_evidence, biased.examples_counted) == ("measured", 1024)


def test_the_noise_of_the_positives_gradient_is_that_of_all_examples() -> None:
    data = examples()
    model = Flat()
    rows: list[Tensor] = []
    for x, y in data:
        part = positive_loss(model, (x[None], y[None])).total
        rows.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(part, list(model.parameters()))])
        )
    each = torch.stack(rows).double().numpy()
    expected = each.var(axis=0).sum() / (each.mean(axis=0) ** 2).sum()
    signal = measure_signal(task(), [4, 100], num_examples=512)
    found = signal.gradients[0]
    assert found.noise_scale == pytest.approx(expected, rel=0.35)
    assert found.noise_low < expected < (found.noise_high or np.inf)
    errors = [update.relative_error for update in signal.updates]
    assert errors[0] is not None
    assert errors[1] is not None
    assert errors[0].value == pytest.approx(5 * errors[1].value)
    assert signal.batch_for_error is not None
    assert signal.batch_for_error.value == pytest.approx(found.noise_scale / 0.2**2)


def test_a_trained_model_is_looked_at_beside_a_fresh_one_and_left_alone() -> None:
    model = Flat(0.02)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[Progress] = []
    signal = measure_signal(task(), [8], model=model, num_examples=16, on_progress=seen.append)
    assert [gradient.stage for gradient in signal.gradients] == ["init", "now"]
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert [parameter.grad for parameter in model.parameters()] == [None, None]
    assert (len(seen), seen[-1].fraction) == (9, 1.0)
    assert Signal.model_validate_json(signal.model_dump_json()) == signal


def test_windows_are_counted_exactly_and_a_model_without_one_output_has_no_mass() -> None:
    labels = np.zeros(4000, np.int64)
    labels[200::400] = 1
    sequences = LabelledSequences(
        inputs=(np.random.default_rng(0).normal(size=4000),), labels=(labels,)
    )
    windows = RandomWindows(sequences, window=LENGTH, num_windows=64, centred=0.5)

    class Pair(Flat):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    def first(model: nn.Module, batch: Any, **part: Any) -> Loss:
        return cross_entropy(model(batch[0])[0], batch[1], **part)

    in_order = task(
        train_data=windows,
        model=Pair,
        loss=first,
        positive_loss=lambda m, b: first(m, b, part="positives"),
        recipe=Recipe(optimizer="sgd", lr=0.1, batch_size=8, epochs=1, sampler="sequential"),
    )
    signal = measure_signal(in_order, [1, 2], num_examples=32)
    assert (signal.counts_evidence, signal.examples_counted) == ("derived", 0)
    assert signal.gradients[0].mass_share is None
    assert [u.probability_none for u in signal.updates] == pytest.approx(
        [0.5 * (1 - 0.05), 0], abs=2e-3
    )
    shuffled = replace(in_order, recipe=in_order.recipe.replace(sampler="shuffle"))
    mixed = measure_signal(shuffled, [2], num_examples=32).updates[0]
    assert mixed.probability_none == pytest.approx(0.475**2, abs=2e-3)


def test_tables_say_what_each_number_rests_on() -> None:
    signal = measure_signal(task(), [8, 64], num_examples=64)
    rows = update_table(signal).rows
    assert [row[0] for row in rows] == ["8", "64"]
    assert re.fullmatch(r"\d+% \(\d+% to (\d+%|open)\)", rows[0][-1])
    text = " ".join(signal_sentences(signal))
    assert "counted on 256 examples" in text
    assert "of the gradient on the outputs at initialisation (measured)" in text
    assert comparison_table([signal]).rows[0][0] == "rare"
    assert comparison_table([signal]).rows[0][4] == "-"
    lost = signal.replace(
        batch_for_error=None,
        counts_evidence="derived",
        design_effect=None,
        gradients=(signal.gradients[0].model_copy(update={"noise_scale": None}),),
        updates=(signal.updates[0].model_copy(update={"probability_none": 1e-9}),),
    )
    assert comparison_table([lost]).rows[0][5:] == ("not bounded", "not bounded")
    assert update_table(lost).rows[0][2] == "1e-09"
    sentences = signal_sentences(lost)
    assert "exactly, from every window" in sentences[0]
    assert "lost in noise" in sentences[-1]
    assert len(sentences) == 3


def test_what_cannot_be_diagnosed_is_refused() -> None:
    with pytest.raises(InvalidTaskError, match="without positive_loss"):
        measure_signal(task(positive_loss=None), [8])
    with pytest.raises(InvalidInputError, match="num_examples = 8"):
        measure_signal(task(), [8], num_examples=8)
    with pytest.raises(InvalidInputError, match=r"relative_error = 0\.0"):
        measure_signal(task(), [8], relative_error=0.0)
    with pytest.raises(InvalidInputError, match="batch size 0"):
        measure_signal(task(), [0], num_examples=16)
    with pytest.raises(InvalidTaskError, match="no positive in 64 examples"):
        measure_signal(task(train_data=examples(fraction=0.0)), [8], num_examples=16)


def test_accuracy_is_refused_as_a_target_where_positives_are_rare() -> None:
    rare = task(evaluate=lambda model, batches: {"accuracy": 1.0}, target=Target("accuracy", 0.9))
    with pytest.raises(
        InvalidTaskError, match=r"(?s)accuracy >= 0\.9 with rare positives.*average_prec"
    ):
        check_task(rare)


def test_focal_loss_moves_the_mass_to_the_positives() -> None:
    def focal(model: nn.Module, batch: Any, **part: Any) -> Loss:
        return focal_loss(model(batch[0]), batch[1], **part)

    model = Flat(0.02)
    plain = measure_signal(task(), [8], model=model, num_examples=256)
    softened = measure_signal(
        task(loss=focal, positive_loss=lambda m, b: focal(m, b, part="positives")),
        [8],
        model=model,
        num_examples=64,
    )
    assert (softened.gradients[1].mass_share or 0) > 0.95
    assert (plain.gradients[1].mass_share or 1) < 0.6
