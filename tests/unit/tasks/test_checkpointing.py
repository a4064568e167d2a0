"""Checkpointed steps against plain ones: the same bits, in gradients and in what forward writes."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rightbatch.core.errors import InvalidTaskError
from rightbatch.tasks.checkpointing import apply_checkpointing, find_blocks, remove_checkpointing

torch.set_num_threads(1)
WIDTH = 6


class Block(nn.Module):
    """Random numbers, two kinds of running statistics, a counter that enters the result, keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        self.normed = nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, shortcut: Tensor, *, scale: float = 1.0) -> Tensor:
        self.calls += 1
        y = nn.functional.dropout(torch.relu(self.norm(self.linear(x))), 0.3)
        return shortcut + scale * self.calls * self.normed(y)


class Stack(nn.Module):
    def __init__(self, block: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([block() for _ in range(3)]), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.blocks:
            y = block(y, x, scale=0.5)
        return self.head(y)


def pair() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh(), nn.Dropout(0.2))


def pairs() -> nn.Module:
    return nn.Sequential(pair(), pair(), nn.Linear(WIDTH, 1))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.1)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def train(model: nn.Module, steps: int = 3) -> tuple[dict[str, Tensor], list[Tensor]]:
    """State and last gradients."""
    torch.manual_seed(0)
    x = torch.randn(8, WIDTH, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model.state_dict(), [p.grad for p in model.parameters() if p.grad is not None]


def two_of(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    model = build().double()
    return model, copy.deepcopy(model)


@pytest.mark.parametrize("build", [Stack, pairs, encoder])
def test_training_is_the_plain_one_bit_for_bit(build: Callable[[], nn.Module]) -> None:
    plain, checkpointed = two_of(build)
    assert apply_checkpointing(checkpointed)
    (state, gradients), (same_state, same_gradients) = train(plain), train(checkpointed)
    assert list(state) == list(same_state)
    assert all(torch.equal(value, same_state[name]) for name, value in state.items())
    assert all(map(torch.equal, gradients, same_gradients))


def test_evaluation_is_the_plain_one_and_writes_nothing() -> None:
    plain, checkpointed = (model.eval() for model in two_of(pairs))
    apply_checkpointing(checkpointed)
    assert all(map(torch.equal, *(train(model)[1] for model in (plain, checkpointed))))
    assert torch.equal(checkpointed.get_buffer("0.1.running_mean"), torch.zeros(WIDTH).double())


def test_backward_can_run_twice_over_one_graph() -> None:
    plain, checkpointed = two_of(Stack)
    apply_checkpointing(checkpointed)
    x, found = torch.randn(8, WIDTH, dtype=torch.float64), list[Tensor]()
    for model in (plain, checkpointed):
        torch.manual_seed(0)
        loss = model(x).square().mean()
        loss.backward(retain_graph=True)
        loss.backward()
        found.append(model.get_parameter("head.weight").grad)  # pyright: ignore[reportArgumentType]
    assert torch.equal(*found)


def test_activations_are_not_kept() -> None:
    saved = list[int]()

    def pack(tensor: Tensor) -> Tensor:
        saved[-1] += tensor.nbytes
        return tensor

    for model in two_of(Stack):
        saved.append(0)
        if len(saved) == 2:
            apply_checkpointing(model)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(64, WIDTH, dtype=torch.float64))
    assert saved[1] < 0.5 * saved[0]


def test_hooks_of_a_block_run_once() -> None:
    calls = list[str]()
    _, model = two_of(pairs)
    model.get_submodule("0").register_forward_hook(lambda *_: calls.append("forward"))
    apply_checkpointing(model)
    train(model, steps=2)
    assert calls == ["forward"] * 2


def test_compiled_blocks_write_statistics_once() -> None:
    plain, model = two_of(pairs)
    for part in (plain, model):
        part.get_submodule("0.3").eval()  # compiled dropout draws other numbers
        part.get_submodule("1.3").eval()
    apply_checkpointing(model)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    train(compiled)
    torch.testing.assert_close(model.state_dict(), train(plain)[0])


def test_copies_pickles_and_undoing_leave_whole_models() -> None:
    _, model = two_of(pairs)
    names = apply_checkpointing(model)
    assert apply_checkpointing(model) == names == ["0", "1"]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin[0].forward.block is twin[0]
    remove_checkpointing(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_forward_that_an_instance_had_comes_back() -> None:
    _, model = two_of(pairs)
    first: Any = model.get_submodule("0")
    first.forward = own = lambda x: 2 * x
    apply_checkpointing(model)
    assert first.forward is not own
    remove_checkpointing(model)
    assert first.forward is own


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Stack(), Stack()


class Attributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.other = Block(), Block(), pair()


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Sequential(Block(), Block()), nn.Sequential(Block())


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([pair(), pair()])


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Named, [f"{part}.blocks.{i}" for part in ("encoder", "decoder") for i in range(3)]),
        (Attributes, ["down", "up"]),
        (Stages, ["one.0", "one.1", "two.0"]),
        (encoder, ["layers.0", "layers.1"]),
        (pairs, ["0", "1"]),
        (lambda: Stack(Experts), ["blocks.0", "blocks.1", "blocks.2"]),
    ],
)
def test_the_outermost_repeated_blocks_are_chosen(
    model: Callable[[], nn.Module], names: list[str]
) -> None:
    assert list(find_blocks(model())) == names


def test_a_model_without_a_repeated_block_is_refused() -> None:
    flat = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(InvalidTaskError, match=r"no block of Sequential .* need two .*\n  hint: put"):
        apply_checkpointing(flat)


class OverwritesInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, shortcut: Tensor, *, scale: float, kept: Tensor) -> Tensor:
        return self.linear(x) * kept.mul_(2)


def test_an_input_that_is_gone_is_an_error_and_no_wrong_gradient() -> None:
    model = OverwritesInput()
    stack = nn.ModuleList([model, OverwritesInput()])
    apply_checkpointing(stack)
    x, kept = torch.randn(4, WIDTH, requires_grad=True), torch.ones(4, WIDTH)
    with pytest.raises(
        InvalidTaskError, match=r"input of the checkpointed OverwritesInput was changed"
    ):
        model(x, x, scale=1.0, kept=kept).sin().sum().backward()
