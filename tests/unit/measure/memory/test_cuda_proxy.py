"""A step on fake CPU tensors takes CUDA's paths, and torch is as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

import rightbatch as rb
from rightbatch.core.samples import MemoryTrace
from rightbatch.measure.memory.cuda_autocast import LOWER, PROMOTE, RAISE, RAISE_BY_DTYPE
from rightbatch.measure.memory.cuda_dispatch import operators_at
from rightbatch.measure.memory.cuda_operators import choose_attention
from rightbatch.measure.memory.cuda_proxy import trace_cuda
from rightbatch.measure.memory.fake import trace_memory

BATCH, WIDTH = 4, 32
TOTAL = BATCH * WIDTH
FLOAT, HALF = 4, 2


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Calls(nn.Module):
    """A weight of ``WIDTH`` numbers and whatever is done with the scaled input."""

    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (WIDTH,)) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.scale)


def mean(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).float().mean()


def make(model: Callable[[], nn.Module], shape: tuple[int, ...] = (WIDTH,), **recipe: Any) -> rb.Task:
    constants: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1} | recipe
    return rb.Task(
        name="t",
        model=model,
        train_data=TensorDataset(torch.randn(BATCH, *shape)),
        valid_data=None,
        loss=mean,
        recipe=rb.Recipe(batch_size=BATCH, epochs=1, **constants),
    )


def births(trace: MemoryTrace, operator: str, phase: str = "forward") -> list[int]:
    """Bytes of what one operator makes in one phase of the first step."""
    begin = trace.phases.index("optimizer")
    first_step = list(trace.phase).index(begin)
    return [
        delta
        for delta, o, p in zip(
            trace.delta_bytes[:first_step], trace.operator, trace.phase, strict=False
        )
        if delta > 0 and trace.operators[o] == operator and trace.phases[p] == phase
    ]


def traced(function: Callable[[Tensor], Tensor], **recipe: Any) -> MemoryTrace:
    return trace_cuda(make(lambda: Calls(function), **recipe), BATCH)


def again(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function's value, to be computed once more in backward."""
    result: Any = checkpoint(function, x, use_reentrant=False)
    return result


def test_every_operator_of_cudas_autocast_is_in_one_list() -> None:
    banned = {"binary_cross_entropy"}  # raises on CUDA
    lists = (LOWER, RAISE, RAISE_BY_DTYPE, PROMOTE)
    assert frozenset().union(*lists) | banned == operators_at("AutocastCUDA")
    assert sum(map(len, lists)) == len(frozenset().union(*lists))


def test_dropout_saves_a_boolean_mask() -> None:
    assert births(traced(lambda x: F.dropout(x, 0.5)), "aten.native_dropout") == [FLOAT * TOTAL, TOTAL]
    assert births(traced(lambda x: F.dropout(x, 0.5, training=False)), "aten.native_dropout") == []


def test_dropout_inside_multi_head_attention_is_replaced_too() -> None:
    def model() -> nn.Module:
        class Attends(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.5, batch_first=True)

            def forward(self, x: Tensor) -> Tensor:
                return self.attention(x, x, x)[0]

        return Attends()

    trace = trace_cuda(make(model, shape=(6, WIDTH)), BATCH)
    assert births(trace, "aten.native_dropout") == [FLOAT * BATCH * 2 * 36, BATCH * 2 * 36]


def test_checkpointed_dropout_is_replaced_when_it_is_recomputed() -> None:
    def function(x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)

    trace = traced(lambda x: again(function, x))
    assert births(trace, "aten.native_dropout", "backward") == [FLOAT * TOTAL, TOTAL]


def test_autocast_computes_what_cuda_raises_in_fp32() -> None:
    def function(x: Tensor) -> Tensor:
        return F.softmax(F.linear(x, torch.ones(WIDTH, WIDTH)), dim=-1).exp()

    trace = traced(function, precision="bf16")
    assert births(trace, "aten.mm") == [HALF * TOTAL]
    assert births(trace, "aten._softmax") == births(trace, "aten.exp") == [FLOAT * TOTAL]
    on_cpu = trace_memory(make(lambda: Calls(function), precision="bf16"), BATCH)
    assert births(on_cpu, "aten._softmax") == [HALF * TOTAL]


def test_cross_entropy_under_autocast_raises_only_its_second_half() -> None:
    targets = torch.zeros(BATCH, dtype=torch.long)

    def function(x: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, torch.ones(WIDTH, WIDTH)), targets)

    trace = traced(function, precision="bf16")
    assert births(trace, "aten._log_softmax") == [HALF * TOTAL]
    assert FLOAT * TOTAL in births(trace, "aten._to_copy")


def test_a_weight_is_lowered_once_per_autocast_in_einsum_too() -> None:
    weight = nn.Parameter(torch.ones(WIDTH, WIDTH))

    def model() -> nn.Module:
        calls = Calls(lambda x: torch.einsum("bi,oi->bo", torch.einsum("bi,oi->bo", x, weight), weight))
        calls.register_parameter("weight", weight)
        return calls

    trace = trace_cuda(make(model, precision="bf16"), BATCH)
    assert births(trace, "aten._to_copy").count(HALF * WIDTH * WIDTH) == 1
    copies = [
        delta
        for delta, o in zip(trace.delta_bytes, trace.operator, strict=True)
        if trace.operators[o] == "aten._to_copy" and delta == HALF * WIDTH * WIDTH
    ]
    assert len(copies) == 2  # the next step starts over


def test_a_sum_under_autocast_asks_for_fp32_without_copying_its_input() -> None:
    trace = traced(lambda x: F.linear(x, torch.ones(WIDTH, WIDTH)).sum(-1), precision="bf16")
    assert births(trace, "aten.sum") == [FLOAT * BATCH]
    assert FLOAT * TOTAL not in births(trace, "aten._to_copy")


def test_cuda_is_accepted_as_a_device_and_for_autocast() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.autocast("cuda"):
            offset = torch.ones(WIDTH, device="cuda").to("cuda:0").cuda()
            return F.linear(x + offset, torch.ones(WIDTH, WIDTH, device=torch.device("cuda")))

    trace = traced(lambda x: again(function, x))
    assert births(trace, "aten.mm") == [HALF * TOTAL]  # fp16, as CUDA's default is
    assert births(trace, "aten.ones", "backward") != []


def test_optimizers_take_their_multi_tensor_form() -> None:
    task = make(lambda: Calls(torch.relu), optimizer="adamw", clip_norm=1.0)
    operators = trace_cuda(task, BATCH).operators
    assert {"aten._foreach_sqrt", "aten._foreach_norm"} <= set(operators)
    assert "aten._foreach_sqrt" not in trace_memory(task, BATCH).operators


def test_step_counters_stay_on_the_host_unless_the_optimizer_is_fused() -> None:
    def state(optimizer: Any) -> int:
        trace = trace_cuda(make(lambda: Calls(torch.relu), optimizer=optimizer), BATCH)
        owner = trace.owners.index("optimizer_state")
        rows = zip(trace.delta_bytes, trace.owner, strict=True)
        return sum(delta for delta, o in rows if o == owner)

    def fused(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=lr, fused=True)

    moments = 2 * FLOAT * WIDTH
    assert (state("adamw"), state(fused)) == (moments, moments + FLOAT)


def test_rms_norm_is_one_kernel_that_saves_a_number_per_row() -> None:
    def model() -> nn.Module:
        return nn.Sequential(Calls(lambda x: x), nn.RMSNorm(WIDTH))

    trace = trace_cuda(make(model), BATCH)
    assert births(trace, "aten.new_empty") == [FLOAT * BATCH]
    assert births(trace, "aten.pow") == []


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_are_one_operator_with_named_doubt(kind: Any, batch_first: bool) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(WIDTH, 16, 2, batch_first=batch_first, bidirectional=True, dropout=0.1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]

    trace = trace_cuda(make(Recurrent, shape=(6, WIDTH), precision="bf16"), BATCH)
    assert any("recurrent layer is assumed" in caveat for caveat in trace.caveats)
    assert "aten.mkldnn_rnn_layer" not in trace.operators


def test_convolutions_name_the_workspaces_that_are_missing() -> None:
    trace = trace_cuda(make(lambda: nn.Conv1d(1, 2, 3), shape=(1, WIDTH)), BATCH)
    assert any("workspaces of convolutions" in caveat for caveat in trace.caveats)


def test_every_storage_that_is_born_and_dies_is_named() -> None:
    trace = traced(torch.relu)
    live: dict[int, int] = {}
    for storage, delta in zip(trace.storage, trace.delta_bytes, strict=True):
        live[storage] = live.get(storage, 0) + delta
        assert live[storage] >= 0
    assert sum(live.values()) == np.sum(trace.delta_bytes)
    assert MemoryTrace.model_validate_json(trace.model_dump_json()) == trace


def test_torch_is_as_it_was_afterwards() -> None:
    def seen() -> tuple[Any, ...]:
        x = torch.ones(2, 4, 8)
        torch.manual_seed(0)
        dropped = F.dropout(x, 0.5).sum().item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            raised = torch.softmax(x.bfloat16(), -1).dtype
        return dropped, raised, torch.clear_autocast_cache, torch.autocast.__init__

    before, on_cpu = seen(), operators_at("AutocastCPU")
    traced(torch.relu)
    with pytest.raises(ZeroDivisionError, match="stop"):
        traced(fail)
    assert seen() == before
    assert operators_at("AutocastCPU") == on_cpu


def fail(x: Tensor) -> Tensor:
    raise ZeroDivisionError("stop")


def heads(dtype: torch.dtype, width: int = 64, length: int = 128, count: int = 8) -> Tensor:
    return torch.empty(2, count, length, width, dtype=dtype, device="meta", requires_grad=True)


@pytest.mark.parametrize(
    ("dtype", "capability", "options", "chosen"),
    [
        (torch.bfloat16, (8, 0), {}, "flash"),
        (torch.float16, (7, 5), {}, "efficient"),
        (torch.bfloat16, (7, 5), {}, "math"),
        (torch.float32, (8, 0), {}, "efficient"),
        (torch.float32, (8, 0), {"width": 66}, "math"),
        (torch.float32, (7, 0), {"width": 66}, "efficient"),
        (torch.bfloat16, (8, 0), {"masked": True}, "efficient"),
        (torch.bfloat16, (8, 0), {"width": 264}, "efficient"),
        (torch.bfloat16, (8, 0), {"width": 200}, "flash"),
        (torch.bfloat16, (8, 6), {"width": 200}, "efficient"),
        (torch.bfloat16, (8, 0), {"kv_heads": 2}, "math"),
        (torch.bfloat16, (8, 0), {"kv_heads": 2, "gqa": True}, "flash"),
        (torch.bfloat16, (8, 0), {"kv_length": 64, "causal": True}, "efficient"),
    ],
)
def test_attention_runs_the_kernel_that_cuda_would_choose(
    dtype: torch.dtype, capability: tuple[int, int], options: dict[str, Any], chosen: str
) -> None:
    width = options.get("width", 64)
    query = heads(dtype, width)
    key = heads(dtype, width, options.get("kv_length", 128), options.get("kv_heads", 8))
    mask = heads(dtype, 128) if options.get("masked") else None
    causal, gqa = options.get("causal", False), options.get("gqa", False)
    found = choose_attention(
        (query, key, key), mask, 0.0, causal, capability=capability, enable_gqa=gqa
    )
    assert found == chosen


def test_a_kernel_that_the_user_forbids_is_not_chosen() -> None:
    query = heads(torch.bfloat16)
    with sdpa_kernel(SDPBackend.MATH):
        found = choose_attention(
            (query, query, query), None, 0.0, False, capability=(8, 0), enable_gqa=False
        )
    assert found == "math"


@pytest.mark.parametrize(
    ("precision", "capability", "masked", "operator"),
    [
        ("fp32", (8, 0), False, "efficient_attention"),
        ("fp32", (8, 0), True, "efficient_attention"),
        ("bf16", (8, 0), False, "flash_attention"),
        ("bf16", (7, 0), False, "_softmax"),
    ],
)
def test_attention_in_a_step_saves_no_scores_unless_written_out(
    precision: str, capability: tuple[int, int], masked: bool, operator: str
) -> None:
    length = 24

    def function(x: Tensor) -> Tensor:
        x = x.view(BATCH, length, 2, WIDTH // 2).transpose(1, 2)
        mask = torch.ones(length, length, dtype=torch.bool).tril() if masked else None
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    task = make(lambda: Calls(function), shape=(length, WIDTH), precision=precision)
    trace = trace_cuda(task, BATCH, capability=capability)
    assert any(operator in name for name in trace.operators)
    scores = BATCH * 2 * length * length * FLOAT
    largest = max(d for d, p in zip(trace.delta_bytes, trace.phase, strict=True) if p > 0)
    assert (largest >= scores) == (operator == "_softmax")


def test_a_device_that_prefers_cudnn_says_so() -> None:
    def function(x: Tensor) -> Tensor:
        x = x.view(BATCH, 1, 2, WIDTH // 2)
        return F.scaled_dot_product_attention(x, x, x)

    task = make(lambda: Calls(function), precision="bf16")
    assert any("cuDNN" in text for text in trace_cuda(task, BATCH, capability=(9, 0)).caveats)
    assert trace_cuda(task, BATCH, capability=(8, 0)).caveats == ()
