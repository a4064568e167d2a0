"""Memory on an accelerator that is not here, from the command line."""

import json

import pytest

from cli_runner import run_cli
from rightbatch.cli.accelerator import names_accelerator


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cuda:a100-40gb", True), ("cuda:1", False), ("cuda", False), ("cpu", False)],
)
def test_a_device_of_this_machine_is_no_name_of_the_catalogue(device: str, expected: bool) -> None:
    assert names_accelerator(device) is expected


def test_reserved_memory_grows_with_the_batch_and_holds_the_tensors() -> None:
    called = run_cli("memory", "digits", "--device", "cuda:a100-40gb", "--batch", "32,65536", "--json")
    answer = json.loads(called.out)
    small, large = answer["predictions"]
    assert small["reserved_bytes"] < large["reserved_bytes"]
    for found in (small, large):
        assert sum(found["parts"].values()) <= found["peak_bytes"] <= found["reserved_bytes"]
        assert found["reserved_bytes"] < found["low_bytes"] < found["high_bytes"]
    assert answer["limit_bytes"] == 40_441 * 2**20
    assert (answer["max_micro_batch_size"], answer["limited_by"]) == (1437, "data")
    assert answer["max_micro_batch_size_by_memory"] > 65_536


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("cuda:a100",), 2, "use cuda:a100-40gb or cuda:a100-80gb"),
        (("cuda:mi300x",), 2, "whose allocator is simulated"),
        (("cuda:t4", "--headroom", "1"), 2, "below 1"),
        (("cuda:t4", "--limit", "600MB"), 3, "does not fit"),
    ],
)
def test_what_cannot_be_predicted_is_refused(options: tuple[str, ...], code: int, words: str) -> None:
    called = run_cli("memory", "digits", "--batch", "32", "--device", *options)
    assert called.code == code
    assert words in called.err
