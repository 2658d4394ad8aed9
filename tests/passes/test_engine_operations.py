"""Operations that only engines have: collectives between ranks, and modules that read parameters which no graph shows."""

from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed._functional_collectives import all_reduce

from passes import PassError, analyse, name_origins, split_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import networkx as nx

    from passes import CapturedGraph


@torch.library.custom_op("dooly_tests::all_reduce", mutates_args=())
def _all_reduce(x: Tensor, num_ranks: int) -> Tensor:
    return x * num_ranks


@_all_reduce.register_fake
def _(x: Tensor, num_ranks: int) -> Tensor:
    assert num_ranks
    return torch.empty_like(x)


@torch.library.custom_op("dooly_tests::all_gather", mutates_args=())
def _all_gather(x: Tensor, num_ranks: int) -> Tensor:
    return torch.cat([x] * num_ranks)


@_all_gather.register_fake
def _(x: Tensor, num_ranks: int) -> Tensor:
    return x.new_empty(x.shape[0] * num_ranks, x.shape[1])


class Parallel(nn.Module):
    """A share of a projection, summed over two ranks, scaled, and gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 8))
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        """Return (2 * tokens, 8)."""
        summed = torch.ops.dooly_tests.all_reduce(x @ self.weight.t(), 2)
        result: Tensor = torch.ops.dooly_tests.all_gather(summed * self.scale, 2)
        return result.gather(0, torch.zeros(1, 8, dtype=torch.int64))


def test_collectives_are_operations(table: Callable[..., str]) -> None:
    """What ranks exchange cuts the module around it into pieces; picking rows of a tensor, also named gather, does not."""
    assert table(nn.Sequential(Parallel()), torch.ones(3, 8)) == cleandoc("""
        0 Parallel: t mm
            in  *[0.scale.size(0)=8, 0.weight.size(1)=8]
            in  [args[0].size(0), 0.weight.size(1)=8]
            out [args[0].size(0), 0.scale.size(0)=8]
        0 all_reduce: dooly_tests.all_reduce
            in  [args[0].size(0), 0.scale.size(0)=8]
            out [args[0].size(0), 0.scale.size(0)=8]
        0 Parallel: mul
            in  [args[0].size(0), 0.scale.size(0)=8]
            in  *[0.scale.size(0)=8]
            out [args[0].size(0), 0.scale.size(0)=8]
        0 all_gather: dooly_tests.all_gather
            in  [args[0].size(0), 0.scale.size(0)=8]
            out [~2*args[0].size(0), 0.scale.size(0)=8]
        0 Parallel: zeros
            out int64[1, 8]
        0 Parallel: gather
            in  [~2*args[0].size(0), 0.scale.size(0)=8]
            in  int64[1, 8]
            out [1, 8]
    """)


def test_a_collective_costs_its_payload(capture: Callable[..., CapturedGraph]) -> None:
    """A sum moves the tensor that each rank has, a gather the one that each rank gets; neither has FLOPs."""
    operations = analyse(capture(nn.Sequential(Parallel()), torch.ones(3, 8))).operations
    costs = {op.operation.module_class: (str(op.cost.flops), str(op.cost.bytes)) for op in operations}
    assert (costs["all_reduce"], costs["all_gather"]) == (
        ("0", "4*0.scale.size(0)*args[0].size(0)"),
        ("0", "8*0.scale.size(0)*args[0].size(0)"),
    )


class Summed(nn.Module):
    """A share of a projection, summed over all ranks by PyTorch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        result: Tensor = all_reduce(self.proj(x), "sum", distributed.group.WORLD) * 2
        return result


@pytest.fixture
def ranks() -> Iterator[Callable[[int], None]]:
    """Return a function that makes this process one of some ranks, which exchange nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def leave() -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def join(num_ranks: int) -> None:
        leave()
        distributed.init_process_group("fake", rank=0, world_size=num_ranks, store=FakeStore())

    yield join
    leave()


def test_a_collective_is_known_by_its_number_of_ranks(
    signatures: Callable[..., dict[str, list[str]]], ranks: Callable[[int], None]
) -> None:
    """PyTorch's collectives carry the name of a group alone: two groups of one size are one, of two sizes two."""
    found = []
    for num_ranks in (2, 4, 4):
        ranks(num_ranks)
        found.append(signatures(Summed(), torch.ones(3, 8)))
    assert found[0]["proj"] == found[1]["proj"]
    assert found[0][""][0] != found[1][""][0]
    assert found[0][""][1] == found[1][""][1]
    assert found[1] == found[2]


def test_waiting_is_part_of_a_collective(table: Callable[..., str], ranks: Callable[[int], None]) -> None:
    """The wait for a collective's result belongs to it, and what reads the result does not."""
    ranks(2)
    operators = [line for line in table(Summed(), torch.ones(3, 8)).splitlines() if line[0] != " "]
    assert operators == [
        "proj Linear: t mm",
        ". all_reduce: _c10d_functional.all_reduce _c10d_functional.wait_tensor",
        ". -: mul",
    ]


def test_pieces_of_several_ranks_are_refused(capture: Callable[..., CapturedGraph], ranks: Callable[[int], None]) -> None:
    """What ranks exchange would cut a piece, whose halves nobody could time: one line says so."""
    ranks(2)
    captured = capture(Summed(), torch.ones(3, 8), stateful={"proj": {"kind": "State"}})
    with pytest.raises(PassError, match=r"pieces: _c10d_functional.all_reduce exchanges tensors between ranks"):
        split_pieces(captured, name_origins(captured))


def test_held_parameters_belong_to_the_state(canonical: Callable[..., nx.DiGraph[int]]) -> None:
    """A parameter that a stateful module reads on its own enters by element type and shape, without its name."""

    def labels(name: str, size: int) -> list[str]:
        held = {"0": {f"0.{name}": torch.ones(4, size, dtype=torch.bfloat16)}}
        graph = canonical(nn.Sequential(nn.GELU()), torch.ones(5, 8), stateful={"0": {"kind": "Experts"}}, held=held)
        return [label for _, label in graph.nodes(data="label")]

    assert labels("w13", 16)[1:3] == ['state {"kind": "Experts"}', "held bfloat16[4, 16]"]
    assert labels("w13", 16) == labels("w2", 16) != labels("w13", 32)


def test_a_held_parameter_is_an_input_of_its_own(capture: Callable[..., CapturedGraph]) -> None:
    """It is told with its path and configured sizes, beside the operands that the graph shows."""
    held = {"0": {"0.w13": torch.ones(4, 16, dtype=torch.bfloat16)}}
    (operation,) = analyse(capture(nn.Sequential(nn.GELU()), torch.ones(5, 8), stateful={"0": {}}, held=held)).operations
    (tensor,) = operation.operation.held
    assert (tensor.parameter, tensor.dtype, tensor.is_parameter) == ("0.w13", "bfloat16", True)
    assert [(str(dim.expr), dim.value) for dim in tensor.shape] == [("0.w13.size(0)", 4), ("0.w13.size(1)", 16)]
