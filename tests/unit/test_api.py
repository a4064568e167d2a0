"""The functions that other people's scripts call by ``rb.``."""

import dataclasses

import pytest
import torch
from torch.utils.data import TensorDataset

import rightbatch as rb


@pytest.fixture
def task() -> rb.Task:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randn(64, 20, generator=generator), torch.randint(0, 3, (64,), generator=generator)
    )
    return rb.Task(
        name="blobs",
        model=lambda: torch.nn.Sequential(
            torch.nn.Linear(20, 256), torch.nn.ReLU(), torch.nn.Linear(256, 3)
        ),
        train_data=data,
        valid_data=None,
        loss=lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]),
        recipe=rb.Recipe(optimizer="adamw", lr=1e-3, batch_size=8, epochs=1),
    )


def test_memory_grows_with_the_batch_and_follows_the_precision_that_is_asked_for(task: rb.Task) -> None:
    fp32, bf16 = rb.fit_memory(task), rb.fit_memory(task, precision="bf16")
    assert fp32.peak_bytes(4096) > fp32.peak_bytes(32) > 0
    assert bf16.peak_bytes(4096) != fp32.peak_bytes(4096)
    assert rb.fit_memory(task, precision="fp32").peak_bytes(4096) == fp32.peak_bytes(4096)


def test_another_device_is_refused(task: rb.Task) -> None:
    with pytest.raises(rb.RightBatchError, match=r"device 'cuda'; need cpu"):
        rb.fit_memory(task, device="cuda")


def test_checkpointing_saves_memory_where_a_block_is_repeated(task: rb.Task) -> None:
    def deep() -> torch.nn.Module:
        pairs = [
            torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
            for _ in range(6)
        ]
        return torch.nn.Sequential(torch.nn.Linear(20, 64), *pairs, torch.nn.Linear(64, 3))

    blocks = dataclasses.replace(task, model=deep)
    plain, recomputed = (rb.fit_memory(blocks, checkpointing=c).peak_bytes(2048) for c in (False, True))
    assert recomputed < 0.75 * plain
    with pytest.raises(rb.RightBatchError, match=r"no block of Sequential is repeated.*\n  hint: put"):
        rb.fit_memory(task, checkpointing=True)


def test_speed_and_noise_are_one_call_each(task: rb.Task) -> None:
    speed = rb.measure_speed(task, time_budget_seconds=3.0)
    assert speed.valid_range[0] == 1
    noise = rb.measure_noise(task, updates=4, batch_size=16)
    assert (noise.num_samples, noise.trace_covariance > 0) == (4, True)
    assert rb.measure_noise(task, updates=4, batch_size=16) == noise
