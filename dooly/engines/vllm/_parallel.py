"""One rank of a parallel layout in one process: groups of the wanted size whose collectives only leave their mark in the graph.

No process group has more than this process in it. vLLM reads sizes and ranks from its group coordinators, and hands collectives
to their communicator; both are replaced, so that the model comes out sharded and each collective is an operator
`dooly::all_reduce`, `dooly::all_gather` and so on, with a shape but no kernel.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from dooly.engines._config import ServingConfig


def enter_layout(serving: ServingConfig, pipeline_rank: int) -> None:
    """Make this process one rank of the layout, in vLLM's groups that stand already.

    The tensor-parallel rank is the first; it gathers the logits.
    """
    from vllm.distributed import parallel_state

    _define_collectives()
    tensor, pipeline = serving.tensor_parallel_size, serving.pipeline_parallel_size
    sizes = {"_TP": (tensor, 0), "_PP": (pipeline, pipeline_rank), "_EP": (tensor, 0)}
    for name, (size, rank) in sizes.items():
        group = getattr(parallel_state, name)
        if group is None or size == 1:
            continue
        group.world_size, group.rank_in_group = size, rank
        # The process is rank 0 of a world of one: shift the group's ranks so that 0 stands at its place.
        group.ranks = [member - rank for member in range(size)]
        group.use_custom_op_call = False
        group.device_communicator = MarkingCommunicator(size)


class MarkingCommunicator:
    """A communicator whose collectives are operators of their own, with shapes and without kernels."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
        self.all2all_manager = None

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the ranks."""
        return _call("all_reduce", tensor, self.num_ranks)

    def all_gather(self, tensor: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Join the ranks' tensors along a dimension, on each rank."""
        return _call("all_gather", tensor, dim % tensor.dim(), self.num_ranks)

    def gather(self, tensor: torch.Tensor, _destination: int = 0, dim: int = -1) -> torch.Tensor:
        """Join the ranks' tensors along a dimension, on the first rank."""
        return _call("gather", tensor, dim % tensor.dim(), self.num_ranks)

    def reduce_scatter(self, tensor: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Sum a tensor over the ranks, and keep this rank's part of a dimension."""
        return _call("reduce_scatter", tensor, dim % tensor.dim(), self.num_ranks)

    def destroy(self) -> None:
        """Do nothing: there is nothing to give back."""


def send(tensor: torch.Tensor) -> torch.Tensor:
    """Hand a tensor to the next rank of the pipeline."""
    return _call("send", tensor)


def receive(tensor: torch.Tensor) -> torch.Tensor:
    """Take a tensor from the previous rank of the pipeline."""
    return _call("receive", tensor)


def _call(name: str, tensor: torch.Tensor, *arguments: int) -> torch.Tensor:
    import torch

    result: torch.Tensor = getattr(torch.ops.dooly, name)(tensor, *arguments)
    return result


@cache
def _define_collectives() -> Any:  # noqa: ANN401 - a torch library, which defines its operators as long as it lives
    import torch

    library = torch.library.Library("dooly", "DEF")
    for schema in (
        "all_reduce(Tensor x, int num_ranks) -> Tensor",
        "all_gather(Tensor x, int dim, int num_ranks) -> Tensor",
        "gather(Tensor x, int dim, int num_ranks) -> Tensor",
        "reduce_scatter(Tensor x, int dim, int num_ranks) -> Tensor",
        "send(Tensor x) -> Tensor",
        "receive(Tensor x) -> Tensor",
    ):
        library.define(schema)

    for name in ("all_reduce", "send", "receive"):
        torch.library.register_fake(f"dooly::{name}", lambda x, *_num_ranks: torch.empty_like(x), lib=library)
    for name in ("all_gather", "gather"):
        torch.library.register_fake(f"dooly::{name}", lambda x, dim, n: _with_size(x, dim, x.shape[dim] * n), lib=library)
    torch.library.register_fake("dooly::reduce_scatter", lambda x, dim, n: _with_size(x, dim, x.shape[dim] // n), lib=library)
    return library


def _with_size(x: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """Return an empty tensor like `x`, but for the size of one dimension."""
    return x.new_empty([size if axis == dim else other for axis, other in enumerate(x.shape)])
