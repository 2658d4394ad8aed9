from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from passes import PassError, analyse

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes import CapturedGraph

    Capture = Callable[..., CapturedGraph]


class Attention(nn.Module):
    """Scaled dot-product attention with grouped heads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.groups = 4, 2
        self.qkv = nn.Linear(24, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, heads, tokens, head size)."""
        q, k, v = self.qkv(x).split([32, 16, 16], dim=-1)
        q = q.view(*x.shape[:2], self.heads, 8).transpose(1, 2)
        k, v = (t.view(*x.shape[:2], self.groups, 8).transpose(1, 2).repeat_interleave(2, dim=1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Products(nn.Module):
    """Batched and added products."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(1, 7, 6))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (batch, 7, 6)."""
        return torch.baddbmm(self.bias, x, y) + torch.bmm(x, y)


class Upsample(nn.Module):
    """A transposed convolution behind a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(4, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose1d(6, 4, 4, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 4, length)."""
        return self.up(self.down(x))


def _counted(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        module(*inputs)
    return counter.get_total_flops()


def _value(captured: CapturedGraph, kind: str) -> list[int]:
    """Return the costs of the operations with every symbol by the value that it had in the traced call."""
    analysis = analyse(captured)
    values = dict(analysis.origins.values)
    for symbol, source in captured.sources.items():
        for named in analysis.origins.names[symbol].free_symbols & analysis.origins.requests:
            values[named] = source.value
    return [int(getattr(op.cost, kind).subs(values)) for op in analysis.operations]


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4, bias=False)), (torch.ones(3, 5, 8),)),
        (Attention(), (torch.ones(3, 5, 24),)),
        (Products(), (torch.ones(3, 7, 5), torch.ones(3, 5, 6))),
        (Upsample(), (torch.ones(3, 4, 10),)),
    ],
    ids=["linear", "attention", "batched", "convolution"],
)
def test_flops_equal_what_torch_counts(capture: Capture, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """The closed form at the traced sizes is the number that PyTorch's own counter gives for a run."""
    flops = sum(_value(capture(module, *inputs), "flops"))
    assert flops == _counted(module, inputs) > 0


def test_flops_are_a_closed_form(capture: Capture) -> None:
    """A linear layer costs two operations a weight and token, over named sizes."""
    (operation,) = analyse(capture(nn.Linear(8, 12, bias=False), torch.ones(5, 8))).operations
    assert str(operation.cost.flops) == "2*args[0].size(0)*weight.size(0)*weight.size(1)"


class Leaf(nn.Module):
    """A function with a weight, as a leaf module."""

    def __init__(self, run: Callable[[Tensor, Tensor], Tensor], *weight: int) -> None:
        super().__init__()
        self.run = run
        self.weight = nn.Parameter(torch.ones(weight))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the function makes of input and weight."""
        return self.run(x, self.weight)


class Parallel(nn.Module):
    """Leaves side by side over inputs of their own."""

    def __init__(self, leaves: list[nn.Module]) -> None:
        super().__init__()
        self.leaves = nn.ModuleList(leaves)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Return each leaf's result."""
        return [leaf(x) for leaf, x in zip(self.leaves, inputs, strict=True)]


def _attend(x: Tensor, weight: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, weight.expand(x.shape[0], *weight.shape), weight.expand(x.shape[0], *weight.shape))


SIZE = st.integers(2, 5)
LEAVES = st.one_of(
    st.builds(lambda b, s, k, n: (nn.Linear(k, n), (b, s, k)), SIZE, SIZE, SIZE, SIZE),
    st.builds(
        lambda n, g, k, t: ((nn.ConvTranspose2d if t else nn.Conv2d)(2 * g, 4 * g, k, groups=g, stride=2), (n, 2 * g, 9, 8)),
        SIZE, SIZE, SIZE, st.booleans(),
    ),
    st.builds(lambda b, m, k, n: (Leaf(torch.matmul, k, n), (b, m, k)), SIZE, SIZE, SIZE, SIZE),
    st.builds(lambda b, m, k, n: (Leaf(partial(torch.einsum, "bmk,nk->bnm"), n, k), (b, m, k)), SIZE, SIZE, SIZE, SIZE),
    st.builds(lambda b, m, k, n: (Leaf(lambda x, w: torch.baddbmm(w[:, :1], x, w), b, k, n), (b, m, k)), SIZE, SIZE, SIZE, SIZE),
    st.builds(lambda b, h, s, d: (Leaf(_attend, h, s + 1, d), (b, h, s, d)), SIZE, SIZE, SIZE, SIZE),
    st.builds(lambda n, k: (nn.Sequential(nn.LayerNorm(k), nn.SiLU()), (n, k)), SIZE, SIZE),
)  # fmt: skip


@settings(max_examples=5, derandomize=True)
@given(leaves=st.lists(LEAVES, min_size=3, max_size=6))
def test_flops_of_any_leaves_equal_what_torch_counts(capture: Capture, leaves: list[tuple[nn.Module, tuple[int, ...]]]) -> None:
    """Products, convolutions, attention and element-wise work of any sizes, side by side, count as PyTorch counts them."""
    module, inputs = Parallel([leaf for leaf, _ in leaves]), [torch.ones(shape) for _, shape in leaves]
    assert sum(_value(capture(module, inputs), "flops")) == _counted(module, (inputs,))


def test_products_that_torch_does_not_count(capture: Capture) -> None:
    """Rows in groups, each with a weight of its own, and eight-bit integers cost as other products do."""

    class Uncounted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.ones(3, 16, 32, dtype=torch.bfloat16))
            self.weight = nn.Parameter(torch.ones(16, 8, dtype=torch.int8), requires_grad=False)

        def forward(self, x: Tensor, y: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
            grouped = F.grouped_mm(x, self.experts, offs=ends)
            batched = F.grouped_mm(x.expand(3, *x.shape), self.experts)
            return grouped, batched, torch._int_mm(y, self.weight)

    ends = torch.tensor([4, 4, 20], dtype=torch.int32)
    captured = capture(Uncounted(), torch.ones(20, 16, dtype=torch.bfloat16), torch.ones(24, 16, dtype=torch.int8), ends)
    assert sum(_value(captured, "flops")) == 2 * 20 * 16 * 32 + 2 * 3 * 20 * 16 * 32 + 2 * 24 * 16 * 8


def test_scaled_products_count(capture: Capture) -> None:
    """A product of eight-bit floating-point numbers costs as any other."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(48, 32).to(torch.float8_e4m3fn), requires_grad=False)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return torch._scaled_mm(x, self.weight.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)

    module, inputs = Scaled(), (torch.ones(16, 32).to(torch.float8_e4m3fn), torch.ones(()))
    assert sum(_value(capture(module, *inputs), "flops")) == _counted(module, inputs) > 0


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float64, 8)], ids=str)
def test_bytes_read_and_write_each_tensor_once(capture: Capture, dtype: torch.dtype, size: int) -> None:
    """A linear layer moves its weight, its input and its result once, in their element type."""
    layer = nn.Linear(8, 12, bias=False, dtype=dtype)
    assert _value(capture(layer, torch.ones(5, 8, dtype=dtype)), "bytes") == [size * (8 * 12 + 5 * 8 + 5 * 12)]


def test_a_lookup_reads_the_rows_taken(capture: Capture) -> None:
    """An embedding moves one row a token beside indices and result, whatever the table's height."""
    assert _value(capture(nn.Embedding(1000, 8), torch.ones(5, dtype=torch.int64)), "bytes") == [5 * 8 + 2 * 5 * 8 * 4]


def test_integer_weights_are_no_indices(capture: Capture) -> None:
    """An eight-bit weight is read whole, and indexes nothing."""

    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 12, dtype=torch.int8), requires_grad=False)
            self.scale = nn.Parameter(torch.ones(12))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.weight * self.scale)

    assert _value(capture(Quantised(), torch.ones(5, 8)), "bytes") == [8 * 12 + 12 * 4 + 5 * 8 * 4 + 5 * 12 * 4]


class Function(nn.Module):
    """A function of its inputs."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the function makes of them."""
        return self.run(*inputs)


@pytest.mark.parametrize(
    ("run", "shapes", "flops"),
    [
        (torch.mv, [(15, 7), (7,)], 210),
        (torch.addmv, [(15,), (15, 7), (7,)], 210),
        (torch.dot, [(7,), (7,)], 14),
        (torch.addbmm, [(3, 5), (2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
    ],
    ids=["mv", "addmv", "dot", "addbmm"],
)
def test_products_with_vectors_count(capture: Capture, run: Callable[..., Tensor], shapes: list[Any], flops: int) -> None:
    """A multiplication and an addition count for each pair of elements."""
    assert _value(capture(Function(run), *map(torch.ones, shapes)), "flops") == [flops]


def test_a_product_without_a_closed_form_is_refused_by_name(capture: Capture) -> None:
    """What multiplies is never counted as nothing; that of an engine's stateful operation is counted by its adapter."""
    inputs = (*(torch.ones(3, 4) for _ in range(3)), [0], [0], [0], [1], 1)
    message = r"^costs: _trilinear in the traced module multiplies matrices, and its FLOPs are not known; "
    with pytest.raises(PassError, match=message):
        analyse(capture(Function(torch._trilinear), *inputs))
    (operation,) = analyse(capture(Function(torch._trilinear), *inputs, stateful={"": {"kind": "experts"}})).operations
    assert operation.cost.flops == 0


def test_recurrent_layers_count(capture: Capture) -> None:
    """Each step of a recurrent layer multiplies by the weights of its input and of its state, in both directions."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shapes = [(192, 32), (192, 48), (192,), (192,)]
            self.weights = nn.ParameterList(nn.Parameter(torch.ones(shape, device="meta")) for shape in shapes)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            tail = (False, [], 2, 48, 1, True, False, False, False)
            return torch.ops.aten.mkldnn_rnn_layer(x, *self.weights, state, state, *tail)[0]

    captured = capture(Recurrent(), torch.ones(7, 3, 32, device="meta"), torch.ones(1, 3, 48, device="meta"))
    assert _value(captured, "flops") == [2 * 7 * 3 * 192 * (32 + 48)]


def test_a_table_that_a_product_reads_too_is_read_whole(capture: Capture) -> None:
    """A tied weight is looked up by index and multiplied by in one piece of code: the product reads all of it."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(100, 16))

        def forward(self, ids: Tensor) -> Tensor:
            return torch.relu(self.weight[ids]) @ self.weight.T

    ids = torch.ones(5, dtype=torch.int64)
    assert _value(capture(Tied(), ids), "bytes") == [5 * 8 + 100 * 16 * 4 + 5 * 100 * 4]
