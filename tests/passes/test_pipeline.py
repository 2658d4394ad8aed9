from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from passes import CAPTURED, PIPELINE, Pass, PassError, analyse, run_passes, same_operation, sign

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes import CapturedGraph

    Capture = Callable[..., CapturedGraph]


def test_each_operation_carries_what_the_passes_found(capture: Capture) -> None:
    """Operations come in the order they run, each with module, request dimensions, FLOPs and bytes."""
    module = nn.Sequential(nn.Linear(8, 12, bias=False), nn.ReLU(), nn.Linear(12, 8, bias=False))
    analysis = analyse(capture(module, torch.ones(3, 5, 8), request_dims={"args[0]": ("batch", "seq", None)}))
    values = analysis.origins.values
    lines = [
        f"{op.operation.module} {op.operation.module_class} over {', '.join(sorted(op.request_dims))}: "
        f"{op.cost.flops.subs(values)} FLOPs, {op.cost.bytes.subs(values)} bytes"
        for op in analysis.operations
    ]
    assert "\n".join(lines) == cleandoc("""
        0 Linear over batch*seq: 192*batch*seq FLOPs, 80*batch*seq + 384 bytes
        1 ReLU over batch, seq: 0 FLOPs, 96*batch*seq bytes
        2 Linear over batch*seq: 192*batch*seq FLOPs, 80*batch*seq + 384 bytes
    """)
    assert all(op.signature == sign(op.canonical) for op in analysis.operations)
    assert {str(symbol) for symbol in analysis.origins.requests} == {"batch", "seq"}


class Differences(nn.Module):
    """Differences between functions of two inputs, each input's own or crossed."""

    def __init__(self, *, crossed: bool) -> None:
        super().__init__()
        self.crossed = crossed

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return two tensors of the inputs' shape."""
        left, right = (torch.relu(x), torch.relu(y)), (torch.tanh(x), torch.tanh(y))
        if self.crossed:
            return left[0] - right[1], left[1] - right[0]
        return left[0] - right[0], left[1] - right[1]


class Both(nn.Module):
    """Both kinds of differences over the same two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.crossed = Differences(crossed=False), Differences(crossed=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return four tensors of the input's shape."""
        x, y = x + 1, x + 2
        return *self.own(x, y), *self.crossed(x, y)


def test_operations_of_equal_hash_are_told_apart(capture: Capture) -> None:
    """Two operations that colour refinement cannot tell apart get signatures of their own, and keep them."""
    operations = {op.operation.module: op for op in analyse(capture(Both(), torch.ones(5, 8))).operations}
    own, crossed = operations["own"], operations["crossed"]
    assert sign(own.canonical) == sign(crossed.canonical)
    assert not same_operation(own.canonical, crossed.canonical)
    assert sorted([own.signature, crossed.signature]) == [sign(own.canonical), f"{sign(own.canonical)}-1"]


def test_a_pass_goes_between_two_others(capture: Capture) -> None:
    """One more pass reads what those before it found, runs at its place, and changes no other result."""
    captured = capture(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.ones(5, 8))
    modules = Pass("modules", lambda operation: operation.module, ("operations",), for_each=True)
    found = list(run_passes(captured, (*PIPELINE[:2], modules, *PIPELINE[2:])))
    assert [name for name, _ in found] == ["origins", "operations", "modules", *(each.name for each in PIPELINE[2:])]
    results = dict(found)
    assert results.pop("modules") == ("0", "1")
    assert results["signatures"] == dict(run_passes(captured))["signatures"]


def test_results_come_one_by_one(capture: Capture) -> None:
    """What a pass found is there before the next one runs, whatever becomes of that."""

    def fail(_captured: CapturedGraph) -> None:
        raise ZeroDivisionError

    captured = capture(nn.Linear(8, 8), torch.ones(5, 8))
    running = run_passes(captured, (PIPELINE[0], Pass("broken", fail, (CAPTURED,))))
    name, origins = next(running)
    assert name == "origins"
    assert origins.names
    with pytest.raises(ZeroDivisionError):
        next(running)


@pytest.mark.parametrize(
    ("passes", "rule"),
    [
        (PIPELINE[1:], r"pipeline: pass operations reads origins, which none before it gives; known are captured$"),
        ((PIPELINE[0], PIPELINE[0]), r"pipeline: pass origins goes by a name that is taken; known are captured, origins$"),
    ],
)
def test_a_pipeline_that_cannot_run_is_refused(capture: Capture, passes: tuple[Pass, ...], rule: str) -> None:
    """A pass that reads a later one, and two of one name, are named."""
    with pytest.raises(PassError, match=rule):
        list(run_passes(capture(nn.Linear(8, 8), torch.ones(5, 8)), passes))
