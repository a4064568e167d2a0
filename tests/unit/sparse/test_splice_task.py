"""The splice task: its nets, its metrics, and the real loci where they are installed."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rightbatch.sparse.losses import IGNORE_INDEX
from rightbatch.sparse.splice import evaluate_sites
from rightbatch.tasks.builtin import is_data_present
from rightbatch.tasks.builtin.splice_net import SpliceNet, build_large, build_small
from rightbatch.tasks.load import load_task

torch.set_num_threads(1)


@pytest.mark.parametrize(("build", "parameters"), [(build_small, 27_923), (build_large, 367_235)])
def test_the_nets_are_as_large_as_they_say(build: type[SpliceNet], parameters: int) -> None:
    assert sum(p.numel() for p in build().parameters()) == parameters


def test_a_position_sees_its_context_and_nothing_further() -> None:
    torch.manual_seed(0)
    net = SpliceNet(channels=8, width=3, dilations=(1, 2)).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    assert net.context == 7
    codes = torch.randint(0, 4, (32, 60))
    before = net(codes)
    assert before.shape == (32, 3, 46)
    codes[:, 30] = 4  # no base at all
    changed = torch.nonzero((net(codes) - before).abs().amax(dim=(0, 1))).flatten() + net.context
    assert (changed.min(), changed.max()) == (30 - 7, 30 + 7)


class Scripted(nn.Module):
    """Logits that are given, whatever the input."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, codes: Tensor) -> Tensor:
        return self.logits[: len(codes)]


def batches(targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield torch.zeros(len(targets), 1, dtype=torch.int64), targets


def test_metrics_ignore_what_does_not_count_and_correct_the_prior() -> None:
    targets = torch.tensor([[0, 1, 0, 2, IGNORE_INDEX, 0]])
    shares = torch.tensor([0.4, 0.3, 0.3]).log()
    logits = shares.reshape(1, 3, 1).repeat(1, 1, 6)
    logits[0, 1, 1] += 2  # the acceptor first, the donor like all others
    logits[0, :, 4] = torch.tensor([-99.0, 99.0, 99.0])
    sampled, true = (0.4, 0.3, 0.3), (0.6, 0.2, 0.2)
    found = evaluate_sites(Scripted(logits), batches(targets), sampled=sampled, true=true)
    assert found["average_precision_acceptor"] == 1
    assert found["top_k_acceptor"] == 1
    # of the donor's scores the acceptor's position is lowest, four others are equal
    assert found["average_precision_donor"] == pytest.approx(1 / 4)
    assert found["average_precision"] == pytest.approx(0.625)
    p = [0.4 + 0] * 4  # 1 - 0.6 at the four positions left at the prior, and Bayes at the fifth
    p.append(1 - 0.6 / (0.6 + 0.2 * math.exp(2) + 0.2))
    assert found["probability_ratio"] == pytest.approx(np.mean(p) / 0.4, rel=1e-6)
    assert found["probability_ratio_uncorrected"] > found["probability_ratio"]


def test_batches_without_a_site_have_no_precision() -> None:
    found = evaluate_sites(
        Scripted(torch.zeros(1, 3, 4)),
        batches(torch.zeros(1, 4, dtype=torch.int64)),
        sampled=(0.5, 0.25, 0.25),
        true=(0.5, 0.25, 0.25),
    )
    assert math.isnan(found["average_precision"])
    assert math.isnan(found["top_k_donor"])


@pytest.mark.skipif(not is_data_present("splice"), reason="Debian's augustus-doc is not installed")
def test_the_real_task_starts_at_its_prior_and_draws_half_its_windows_around_sites() -> None:
    task = load_task("splice-small")
    windows = [task.train_data[i] for i in range(16)]
    assert windows[0][0].shape == (5001 + 2 * 126,)
    assert sum(bool((labels > 0).any()) for _, labels in windows) >= 8
    batch = (torch.stack([w[0] for w in windows[:2]]), torch.stack([w[1] for w in windows[:2]]))
    model = task.model()
    loss = task.loss(model, batch)
    assert not isinstance(loss, Tensor)
    # the entropy of the prior, not log 3
    assert float(loss.total.detach()) / float(loss.count) < 0.05
    part = task.positive_loss(model, batch)  # type: ignore[misc]
    assert not isinstance(part, Tensor)
    assert 0 < int(part.count) < 0.02 * int(loss.count)
    assert 0 < float(part.total.detach()) < float(loss.total.detach())
