from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from dooly.errors import MeasurementError
from dooly.measure.module._arguments import arguments_at, graph_values, symbol_values, tensor_values
from dooly.measure.module._subgraph import extract_subgraph, run_pieces, split_graph
from dooly.tracing import Traced, trace
from passes.pipeline import analyse

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from torch import nn


@pytest.fixture
def pooled(modules: ModuleType) -> Traced:
    """A traced module with several arguments and results."""
    traced = trace(modules.Pooled().eval(), request_dims={"x": ("batch", "seq", None)})
    traced(torch.randn(3, 5, 8), torch.rand(3, 5) > 0.5, extra=[torch.randn(3, 5, 8)], num_top=2, mode="sum")
    return traced


@pytest.fixture
def transformer(modules: ModuleType) -> Traced:
    """A traced language model."""
    traced = trace(modules.Transformer().eval(), request_dims={"ids": ("batch", "seq")})
    traced(torch.randint(0, 100, (3, 5)))
    return traced


def run_at(traced: Traced, sizes: dict[str, int], run: Callable[[int, Callable[[], Any]], Any]) -> tuple[list[object], object]:
    """Return what the pieces of a traced module give at some sizes, and what the module itself gives."""
    captured = traced.captured
    analysis = analyse(captured)
    pieces = split_graph(captured, [analysed.operation for analysed in analysis.operations])
    symbols = symbol_values(captured, analysis.origins, sizes)
    bound = arguments_at(traced, captured, symbols)
    module: nn.Module = traced.module
    given = {**graph_values(captured, symbols), **tensor_values(captured, module, bound)}
    with torch.no_grad():
        left = run_pieces(pieces, given, run)
        expected = module(*bound.args, **bound.kwargs)
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    assert set(left) - set(given) <= set(output.args[0])
    return [left[node] for node in output.args[0]], expected


@pytest.mark.parametrize("sizes", [{"batch": 3, "seq": 5}, {"batch": 2, "seq": 9}, {"batch": 1, "seq": 1}])
@pytest.mark.parametrize("name", ["transformer", "pooled"])
def test_pieces_compute_what_the_module_does(name: str, sizes: dict[str, int], request: pytest.FixtureRequest) -> None:
    """Run one after the other, at sizes other than the traced ones too, the pieces give the module's result bit for bit."""
    results, expected = run_at(request.getfixturevalue(name), sizes, lambda _place, call: call())
    tensors = expected if isinstance(expected, tuple) else (expected,)
    assert len(results) == len(tensors)
    for result, tensor in zip(results, tensors, strict=True):
        assert isinstance(result, torch.Tensor)
        assert torch.equal(result, tensor)


def test_every_operation_runs_once(transformer: Traced) -> None:
    """Each analysed operation runs once a forward, in the order of the graph."""
    ran: list[int] = []

    def run(place: int, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the call returns
        ran.append(place)
        return call()

    run_at(transformer, {"batch": 2, "seq": 4}, run)
    assert ran == list(range(sum(op.count for op in transformer.traced.operations)))


def test_a_subgraph_takes_operands_and_sizes(transformer: Traced) -> None:
    """The inputs of a linear layer's subgraph are its weight, bias and operand; views and sizes outside are none of it."""
    (up,) = (a.operation for a in analyse(transformer.captured).operations if a.operation.module == "layers.1.up")
    subgraph = extract_subgraph(up.nodes)
    assert set(subgraph.inputs) == set(up.operands)
    assert subgraph.outputs == up.results
    (weight, bias, x) = (torch.randn(128, 32), torch.randn(128), torch.randn(6, 32))
    named = {(128, 32): weight, (128,): bias, (6, 32): x}
    by_rank = [
        next(v for s, v in named.items() if spec.is_parameter == (s != (6, 32)) and len(s) == len(spec.shape))
        for spec in up.inputs
    ]
    (result,) = subgraph.module(*by_rank)
    assert torch.allclose(result, x @ weight.T + bias, atol=1e-5)


def test_elements_are_those_of_the_example(transformer: Traced) -> None:
    """Arguments at other sizes hold elements of the example's only, so indices stay in range."""
    captured = transformer.captured
    symbols = symbol_values(captured, analyse(captured).origins, {"batch": 7, "seq": 50})
    (ids,) = arguments_at(transformer, captured, symbols).args
    (args, _kwargs) = transformer.example
    assert ids.shape == (7, 50)
    assert ids.dtype == torch.int64
    assert set(ids.flatten().tolist()) <= set(args[0].flatten().tolist())


def test_a_tensor_from_elsewhere_is_refused() -> None:
    """A module that reads a tensor that is neither an argument nor its own is named, with the tensor."""
    outside = torch.ones(8)

    class Reads(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * outside

    traced = trace(Reads(), request_dims={"x": ("rows", None)})
    traced(torch.randn(3, 8))
    captured = traced.captured
    symbols = symbol_values(captured, analyse(captured).origins, {"rows": 4})
    with pytest.raises(MeasurementError, match=r"Reads: forward reads .*outside.* which is neither its argument"):
        arguments_at(traced, captured, symbols)
