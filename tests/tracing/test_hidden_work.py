from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn

from dooly.errors import TraceError
from dooly.tracing import trace

X = torch.ones(3, 7, 32)


def test_a_recurrent_layer_is_one_operation() -> None:
    """An LSTM runs as it did, and costs its products for each step of each sequence."""
    layer = nn.LSTM(32, 48, 2, batch_first=True)
    traced = trace(layer, request_dims={"input": ("batch", "seq")})
    assert torch.equal(traced(X)[0], layer(X)[0])
    (operation,) = traced.traced.operations
    weights = 4 * 48 * (32 + 48) + 4 * 48 * (48 + 48)
    assert operation.request_flops == f"{2 * weights}*batch*seq"
    assert not torch._dynamo.config.allow_rnn


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            nn.GRU(32, 48),
            r"^Sequential: PyTorch runs 0 \(GRU\) step by step, so .*; take nn.LSTM, which a CPU runs in one operator, ",
        ),
        (nn.LSTM(32, 48, dtype=torch.float64), r"0 \(LSTM\): PyTorch runs it step by step .*; trace it on a CPU in float32, or "),
    ],
    ids=["GRU", "an element type"],
)
def test_steps_that_a_graph_would_hold_one_by_one_are_refused(layer: nn.RNNBase, message: str) -> None:
    """Their number would be a constant: the message names the layer, and what to do."""
    with pytest.raises(TraceError, match=message):
        trace(nn.Sequential(layer))(X.to(layer.weight_ih_l0.dtype))


def test_packed_weights_are_refused_by_name() -> None:
    """Dynamically quantised layers keep their weights where no graph shows them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(32, 48)), {nn.Linear})
    with pytest.raises(TraceError, match=re.escape("0 (Linear): its quantised weights are packed outside of any tensor")):
        trace(quantised)(X)
