from dataclasses import replace

import pytest

from rightbatch.core.devices import find_accelerator, parse_accelerator
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.work import OperatorWork, StepWork
from rightbatch.fit.roofline import FAST, SLOW, USUAL, flops_utilization, predict_step_seconds

A100 = parse_accelerator("a100-40gb")


def step(*operators: OperatorWork) -> StepWork:
    return StepWork(micro_batch_size=8, operators=operators)


def product(**changes: object) -> OperatorWork:
    work = OperatorWork(operator="aten.mm", dtype="float32", calls=1, flops=10**12, moved_bytes=10**6)
    return replace(work, **changes)  # type: ignore[arg-type]


def test_a_large_product_takes_its_operations_over_the_peak() -> None:
    seconds = predict_step_seconds(step(product()), A100)
    assert seconds.value == pytest.approx(1e12 / (0.5 * 19.5e12) + USUAL.launch_seconds)
    assert seconds.low == pytest.approx(1e12 / (0.8 * 19.5e12) + FAST.launch_seconds)
    assert seconds.high == pytest.approx(1e12 / (0.25 * 19.5e12) + SLOW.launch_seconds)


def test_an_elementwise_operator_takes_its_bytes_over_the_bandwidth() -> None:
    seconds = predict_step_seconds(step(product(flops=0, moved_bytes=10**10)), A100)
    assert seconds.value == pytest.approx(1e10 / (0.7 * 1555e9) + USUAL.launch_seconds)


def test_tiny_operators_cost_their_launches() -> None:
    tiny = product(flops=10, moved_bytes=10, calls=1000)
    assert predict_step_seconds(step(tiny), A100).value == pytest.approx(1000 * 10e-6, rel=1e-3)


def test_sixteen_bits_are_faster_where_the_device_has_them_and_refused_where_not() -> None:
    half = step(product(dtype="bfloat16"))
    assert (
        predict_step_seconds(half, A100).value < predict_step_seconds(step(product()), A100).value / 5
    )
    with pytest.raises(InvalidInputError, match=r"aten.mm in bfloat16 on NVIDIA Tesla T4; need one of"):
        predict_step_seconds(half, parse_accelerator("t4"))


def test_utilization_is_the_share_of_the_peak() -> None:
    assert flops_utilization(step(product()), 0.1, A100, "fp32") == pytest.approx(1e13 / 19.5e12)
    assert flops_utilization(step(product()), 0.1, parse_accelerator("t4"), "bf16") is None


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "cuda:a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "cuda:rtx-4090"),
        ("NVIDIA H200", "cuda:h200"),
        ("Example CPU at 2.5 GHz", None),
    ],
)
def test_a_device_is_found_by_what_torch_calls_it(reported: str, name: str | None) -> None:
    found = find_accelerator(reported)
    assert (found.name if found else None) == name
