"""The functions that other people's scripts call by ``rb.``."""

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


def test_what_cannot_be_traced_yet_is_refused(task: rb.Task) -> None:
    with pytest.raises(rb.RightBatchError, match=r"device 'cuda'; need cpu"):
        rb.fit_memory(task, device="cuda")
    with pytest.raises(rb.RightBatchError, match=r"checkpointing = True; need a step"):
        rb.fit_memory(task, checkpointing=True)


def test_speed_and_noise_are_one_call_each(task: rb.Task) -> None:
    speed = rb.measure_speed(task, time_budget_seconds=3.0)
    assert speed.valid_range[0] == 1
    noise = rb.measure_noise(task, updates=4, batch_size=16)
    assert (noise.num_samples, noise.trace_covariance > 0) == (4, True)
    assert rb.measure_noise(task, updates=4, batch_size=16) == noise
