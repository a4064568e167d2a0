import sys
from typing import Any

import pytest
import torch

from rightbatch.tasks.where import at, raised, raised_at, running_at


def fails(value: torch.Tensor) -> Any:
    return torch.nn.functional.linear(value, torch.ones(3, 3))


def test_an_exception_inside_torch_is_placed_at_the_line_that_called_it() -> None:
    line = fails.__code__.co_firstlineno + 1
    with pytest.raises(RuntimeError, match="mat1") as caught:
        fails(torch.ones(2, 2))
    assert raised_at(caught.value) == f"{__file__}:{line}"


def test_what_runs_is_placed_at_the_innermost_line_outside_torch() -> None:
    found: list[str] = []
    model = torch.nn.Identity()
    model.register_forward_pre_hook(lambda *_: found.append(running_at(sys._getframe(1))))
    model(torch.ones(1))
    assert found[0].startswith(f"{__file__}:")


def test_without_a_line_there_is_no_place() -> None:
    assert (raised_at(ValueError()), running_at(None), at("")) == ("", "", "")


def test_a_device_that_is_absent_gets_its_own_way_out() -> None:
    absent = AssertionError("Torch not compiled with CUDA enabled")
    found, need, hint = raised("loss", absent, "a", "b")
    assert found == "loss raised AssertionError: Torch not compiled with CUDA enabled"
    assert need == "code that stays on the device of its inputs"
    assert "--device cuda:a100-40gb" in hint
    assert raised("loss", ValueError("x"), "a", "b") == ("loss raised ValueError: x", "a", "b")
