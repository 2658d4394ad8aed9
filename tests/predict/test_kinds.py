"""Kinds of operations: told by graph and closed forms, whatever their sizes are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.predict._kinds import LinearLayer, kind_of
from dooly.tracing import TracedDim, TracedTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from dooly.tracing import TracedOperation

WEIGHT = TracedTensor("bfloat16", (TracedDim("64", "config", 64), TracedDim("32", "config", 32)), is_parameter=True)


@pytest.mark.parametrize(
    ("dim", "flops"),
    [
        ("num_tokens", "4096*num_tokens"),
        ("32*num_tokens", "131072*num_tokens"),
        ("num_reqs*num_tokens", "4096*num_reqs*num_tokens"),
        ("floor(num_tokens/2)", "4096*floor(num_tokens/2)"),
    ],
)
def test_a_product_is_one_over_any_rows(operation: Callable[..., TracedOperation], dim: str, flops: str) -> None:
    """A product with one whole matrix is a linear layer, be its rows tokens, heads of tokens or half of them."""
    found = operation("a", "proj", inputs=(WEIGHT,), request_dims=(dim,), request_flops=flops)
    assert kind_of(found) == LinearLayer(64, 32, "bfloat16")


@pytest.mark.parametrize(
    ("dim", "flops"), [("num_tokens", "0"), ("floor(num_tokens/5000)", "0"), ("num_tokens", "64*num_tokens")]
)
def test_what_multiplies_less_is_none(operation: Callable[..., TracedOperation], dim: str, flops: str) -> None:
    """An operation that reads a matrix but multiplies no rows with all of it is no linear layer."""
    assert kind_of(operation("a", "lookup", inputs=(WEIGHT,), request_dims=(dim,), request_flops=flops)) is None
