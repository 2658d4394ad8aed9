"""What selections of KV-cache policies are said to cost is what their traces hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip

from dooly.kv import POLICIES, AttentionShape, CritiPrefill, Policy, Selection  # noqa: E402
from dooly.kv_policy import CRITICAL_BLOCK_SIZE, KEPT_BY, SEGMENT_SIZE, HeadSizes, KVPolicy  # noqa: E402
from dooly.predict._selections import selection_work  # noqa: E402
from dooly.tracing import TracedOperation, trace  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
DROPPING = [name for name, scope in KEPT_BY.items() if scope is not None]


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:  # noqa: ANN401 - a module
    """`scripts/build_kv_selections.py`."""
    return load_script("scripts/build_kv_selections.py")


def as_traced(name: str, sizes: HeadSizes, num_tokens: int, dtype: str, found: dict[str, float]) -> None:
    """Hold the forms that ship to what a trace has."""
    told = selection_work(KVPolicy(name, 0.2), sizes, num_tokens, dtype)
    assert told.bytes == pytest.approx(found["bytes"], rel=0.01)
    assert told.kernels == pytest.approx(found["kernels"], abs=0.5)
    assert told.bfloat16_flops == pytest.approx(found["bfloat16_flops"])
    assert told.float32_flops == pytest.approx(found["float32_flops"])


@pytest.mark.parametrize("name", DROPPING)
def test_the_forms_that_ship_are_those_of_a_trace(script: Any, name: str) -> None:  # noqa: ANN401 - a module
    """At a shape that no form was made by, bytes are within 1 %, and FLOPs of each element type exact."""
    hidden_size, *heads = script.OTHER_SHAPE
    operation = script.traced(POLICIES[name], script.OTHER_SHAPE)
    for num_tokens in (2048, 131_072):
        for dtype in script.DTYPES:
            as_traced(name, HeadSizes(*heads, hidden_size), num_tokens, dtype, script.work(operation, num_tokens, dtype))


def test_in_float32_the_forms_are_those_of_a_trace_in_float32(script: Any) -> None:  # noqa: ANN401 - a module
    """What a trace in bfloat16 makes of float32 is what runs in it: LaProx turns most of its operands."""
    shape, policy = AttentionShape(48, 4, 2, 16, 1e4), POLICIES["laprox"]
    assert isinstance(policy, Policy)
    run = trace(Selection(policy, 0.2, shape), request_dims={"keys": (None, "num_tokens"), "values": (None, "num_tokens")})
    run(torch.randn(4, 32, 16), torch.randn(2, 200, 16), torch.randn(2, 200, 16))
    (operation,) = run.traced.operations
    as_traced("laprox", shape.head_sizes, 8192, "float32", script.work(operation, 8192, "float32"))


class Choice(nn.Module):
    """CritiPrefill's choice of blocks in one layer, for prompts of one length."""

    def __init__(self, sizes: HeadSizes, num_tokens: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim, _ = sizes
        self.num_tokens = num_tokens
        self.num_segments = (num_tokens - 1) // SEGMENT_SIZE
        self.num_blocks = self.num_segments * SEGMENT_SIZE // CRITICAL_BLOCK_SIZE

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """Return the blocks that each segment attends to."""
        assert queries.shape == (self.num_heads, self.num_tokens, self.head_dim)
        assert keys.shape == (self.num_kv_heads, self.num_tokens, self.head_dim)
        assert previous.shape == (self.num_kv_heads, self.num_segments, self.num_blocks)
        return CritiPrefill().select(queries, keys, 64, previous)[0]

    def inputs(self) -> tuple[torch.Tensor, ...]:
        """Return queries, keys and the criticality of the layer before."""
        queries, keys = (torch.randn(heads, self.num_tokens, self.head_dim) for heads in (self.num_heads, self.num_kv_heads))
        return queries.bfloat16(), keys.bfloat16(), torch.rand(self.num_kv_heads, self.num_segments, self.num_blocks)


@pytest.mark.parametrize("num_tokens", [4700, 9000])
def test_what_a_sparse_prefill_chooses_by_is_that_of_a_trace(script: Any, num_tokens: int) -> None:  # noqa: ANN401 - a module
    """The forms of CritiPrefill, which were summed up by hand; at budget 1 nothing is gathered."""
    sizes = HeadSizes(4, 2, 16, 64)
    choice = Choice(sizes, num_tokens)
    run = trace(choice)
    run(*choice.inputs())
    operation: TracedOperation
    (operation,) = run.traced.operations
    for dtype in script.DTYPES:
        found = script.work(operation, num_tokens, dtype)
        told = selection_work(KVPolicy("critiprefill", 1), sizes, num_tokens, dtype)
        assert told.bytes == pytest.approx(found["bytes"], rel=0.01)
        assert told.kernels == found["kernels"] + 2  # gathering keys and values
        assert (told.bfloat16_flops, told.float32_flops) == (found["bfloat16_flops"], found["float32_flops"])


def test_what_segments_choose_is_copied_once() -> None:
    """Keys and values of the chosen blocks are read and written, for all segments but the first tokens' and the last."""
    sizes, num_tokens, policy = HeadSizes(4, 2, 16, 64), 9000, CritiPrefill()
    queries, keys, _ = Choice(sizes, num_tokens).inputs()
    chosen, _ = policy.select(queries, keys, policy.num_critical_blocks(num_tokens, 0.5))
    copied = int(chosen[:, policy.num_dense_tokens // SEGMENT_SIZE :].sum()) * CRITICAL_BLOCK_SIZE * sizes.head_dim
    some, none = (selection_work(KVPolicy("critiprefill", budget), sizes, num_tokens) for budget in (0.5, 1))
    assert some.bytes - none.bytes == 2 * 2 * 2 * copied
