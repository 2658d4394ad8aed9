"""Scoring and selecting as operations that `dooly.trace` sees."""

from __future__ import annotations

from functools import cache

import pytest

torch = pytest.importorskip("torch")

from dooly.errors import InvalidInputError  # noqa: E402 - after the skip
from dooly.kv import AttentionShape, LayerInputs, Policy, Selection, find_policy, select  # noqa: E402
from dooly.tracing import TracedOperation, evaluate_form, trace  # noqa: E402

H, G, D, HIDDEN, N, W = 4, 2, 16, 48, 300, 32
DIMS = {"keys": (None, "num_tokens"), "values": (None, "num_tokens")}


NAMES = ("snapkv", "critical-adakv", "defensivekv", "laprox")
"""One of each kind of score."""


def inputs() -> tuple[torch.Tensor, ...]:
    """Return queries, keys, values and the output projection of one layer."""
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=draw) for shape in ((H, W, D), (G, N, D), (G, N, D), (H, D, HIDDEN)))


@cache
def traced(name: str) -> tuple[torch.Tensor, TracedOperation]:
    """Return what the traced selection of a policy keeps, and its only operation."""
    policy = find_policy(name)
    assert isinstance(policy, Policy)
    module = trace(Selection(policy, 0.25, AttentionShape(HIDDEN, H, G, D, 1e4)), request_dims=DIMS)
    with torch.no_grad():
        module.output_projection.copy_(inputs()[3])
    kept = module(*inputs()[:3])
    (operation,) = module.traced.operations
    return kept, operation


@pytest.mark.parametrize("name", NAMES)
def test_a_traced_policy_keeps_what_it_keeps_and_counts_what_it_multiplies(name: str) -> None:
    """The number of tokens is the one request dimension; FLOPs are the products' of window and values, bytes more than inputs."""
    kept, operation = traced(name)
    assert torch.equal(kept, select(find_policy(name), [LayerInputs(*inputs(), D**-0.5)], 0.25)[0])
    assert operation.request_dims == ("num_tokens",)
    for num_tokens in (300, 5000):
        past = num_tokens - W
        window = 2 * H * W * num_tokens * D
        norms = {"snapkv": 0, "laprox": 2 * H * D * D * (past + HIDDEN) + window + 2 * H * W * D * HIDDEN}
        expected = window + norms.get(name, 2 * H * past * D * HIDDEN)
        assert evaluate_form(operation.request_flops, {"num_tokens": num_tokens}) == expected
        assert evaluate_form(operation.request_bytes, {"num_tokens": num_tokens}) > 4 * G * num_tokens * D


def test_policies_are_operations_of_their_own() -> None:
    """Each policy has its own signature."""
    assert len({traced(name)[1].signature for name in NAMES}) == len(NAMES)


def test_inputs_of_other_sizes_are_refused() -> None:
    """Queries are those of the window and heads, keys those of the key/value heads."""
    module = Selection(find_policy("snapkv"), 0.25, AttentionShape(HIDDEN, H, G, D, 1e4))
    queries, keys, values, _ = inputs()
    with pytest.raises(InvalidInputError, match="the queries are not"):
        module(queries[:, :5], keys, values)
    with pytest.raises(InvalidInputError, match="the keys are not"):
        module(queries, keys[:1], values[:1])
