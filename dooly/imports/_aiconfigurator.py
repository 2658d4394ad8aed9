"""aiconfigurator's tables (ai-dynamo/aiconfigurator, Apache-2.0): kernels of vLLM by shape, in milliseconds, one row a point.

Their collector times CUDA-graph replays of the engine's own layers between events. What is read here: linear layers in bfloat16
and in 8 bits, with the quantisation of their activations; grouped-query attention, under a sliding window or without one, over a
cache of either type; mixtures of experts by how their weights are quantised; and collectives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.errors import InvalidInputError, pip_install
from dooly.predict._features import BatchArrays

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class LatentWidths:
    """Widths of a module of latent attention."""

    hidden: int
    """Of the tokens."""
    q_rank: int
    """Of compressed queries."""
    rank: int
    """Of the vector that is cached, but for its part with positions."""
    rope_size: int
    """Of that part, and of a head's queries and keys with positions."""
    nope_size: int
    """Of a head's queries and keys without."""
    value_size: int
    """Of a head's values."""

    def projections(self, num_heads: int) -> tuple[tuple[int, int], ...]:
        """Return outputs and inputs of the products around attention, which are operations of their own in a trace."""
        a = (self.q_rank + self.rank + self.rope_size, self.hidden)
        return a, (num_heads * (self.nope_size + self.rope_size), self.q_rank), (self.hidden, num_heads * self.value_size)

    def moved(self, num_heads: int) -> tuple[int, ...]:
        """Return elements a token that operations read and write which multiply nothing: two norms, rotation, joining."""
        rotated = self.rope_size * (num_heads + 1)
        return 2 * self.q_rank, 2 * self.rank, 2 * rotated, 2 * self.rope_size * num_heads


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table, as arrays of one length."""

    values: dict[str, npt.NDArray[Any]]
    """Arrays by name."""

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.values[name]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def where(self, **wanted: object) -> Columns:
        """Return the rows whose columns have the wanted values."""
        mask = np.ones(len(self), dtype=bool)
        for name, value in wanted.items():
            mask &= self.values[name] == value
        return self.kept(mask)

    def kept(self, mask: npt.NDArray[np.bool_]) -> Columns:
        """Return the rows that a mask keeps."""
        return Columns({name: column[mask] for name, column in self.values.items()})

    @property
    def latency_ns(self) -> Floats:
        """Latencies in nanoseconds, shape (num_rows,)."""
        return np.asarray(self.values["latency"], dtype=np.float64) * NS_PER_MS


def read_table(folder: Path, name: str, columns: tuple[str, ...]) -> Columns:
    """Return columns of the table `name` in a folder.

    Raises:
        InvalidInputError: The table is not there, is no parquet file, or lacks a column.
    """
    path = folder / f"{name}_perf.parquet"
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"{path}: parquet needs pyarrow; install it with {pip_install('imports')}") from error
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InvalidInputError(
            f"{path}: is no aiconfigurator table ({str(error).splitlines()[0]}); give their folder"
        ) from error
    missing = [column for column in (*columns, "latency") if column not in table.column_names]
    if missing:
        raise InvalidInputError(f"{path}: lacks the column {missing[0]}; this version reads aiconfigurator's tables of vLLM 0.24")
    return Columns({name: table[name].to_numpy(zero_copy_only=False) for name in (*columns, "latency")})


def has_table(folder: Path, name: str) -> bool:
    """Tell whether a folder has a table."""
    return (folder / f"{name}_perf.parquet").is_file()


def num_rows(folder: Path, name: str) -> int:
    """Return how many rows a table has."""
    return len(read_table(folder, name, ()).latency_ns)


def linear_layers(folder: Path, dtype: str = "bfloat16") -> Columns:
    """Return the products of an element type, as `LinearLayer` names it: `m`, `n`, `k` and latency."""
    table = read_table(folder, "gemm", ("gemm_dtype", "m", "n", "k"))
    return table.where(gemm_dtype=dtype)


_EXPERTS = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
_FOUR_BITS = {"w4a16": ("int4_wo", True), "w4a16_mxfp4": ("w4a16_mxfp4", True), "mxfp4": ("w4a16_mxfp4", False)}
"""The tables' own names of weights of four bits, by the element types of `Experts`, and whether Marlin multiplies them."""


def experts(folder: Path, dtype: str = "bfloat16") -> Columns:
    """Return mixtures of experts of an element type, as `Experts` names it, one rank's part; the router is not in it.

    Their tokens are dealt out in turn: no more choices than there are experts reach one each.
    """
    rows = read_table(folder, "moe", (*_EXPERTS, "moe_dtype", "distribution", "kernel_source")).where(distribution="balanced")
    if dtype not in _FOUR_BITS:
        return rows.where(moe_dtype=dtype)
    name, wanted = _FOUR_BITS[dtype]
    by_marlin = np.array(["marlin" in kernel for kernel in rows["kernel_source"]], dtype=bool)
    return rows.kept((rows["moe_dtype"] == name) & (by_marlin == wanted))


_ATTENTION = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "window_size", "kv_cache_dtype")


def attention(folder: Path, name: str, dtype: str = "bfloat16", *, windowed: bool = False) -> Columns:
    """Return rows of attention over a cache of an element type: decodes, or prefills of prompts of several tokens.

    Args:
        folder: aiconfigurator's tables of one system.
        name: `context_attention` or `generation_attention`.
        dtype: Element type of the cache.
        windowed: Whether a sliding window bounds what a query sees.
    """
    rows = read_table(folder, name, (*_ATTENTION, "kernel_source")).where(kv_cache_dtype=dtype)
    rows = rows.where(kernel_source="vllm_flash_attn_fa3")  # the kernel that the engine chooses on these devices
    rows = rows.kept((rows["window_size"] > 0) == windowed)
    return rows.kept(rows["isl"] > 1) if name == "context_attention" else rows


LATENT = LatentWidths(hidden=7168, q_rank=1536, rank=512, rope_size=64, nope_size=128, value_size=128)
"""Of the one model whose modules of latent attention were timed, as its configuration has them; tables name it alone."""


def latent_modules(folder: Path, name: str, dtype: str) -> Columns:
    """Return whole modules of latent attention in bfloat16 over a cache of an element type, from a rank's share of the heads.

    Args:
        folder: aiconfigurator's tables of one system.
        name: `mla_context_module` or `mla_generation_module`.
        dtype: Element type of the cache.
    """
    rows = read_table(folder, name, ("num_heads", "batch_size", "isl", "step", "kv_cache_dtype", "gemm_type", "tp_size"))
    return rows.where(kv_cache_dtype=dtype, gemm_type="bfloat16", tp_size=1)


def batches(rows: Columns) -> BatchArrays:
    """Return the batches that rows of attention ran."""
    count = np.asarray(rows["batch_size"], dtype=np.int64)
    filled = np.arange(count.max())[None, :] < count[:, None]
    new, computed = (np.asarray(rows[column], dtype=np.int64)[:, None] for column in ("isl", "step"))
    return BatchArrays(filled * new, filled * computed, np.zeros_like(count))


def collectives(folder: Path) -> list[tuple[str, int, Ints, Floats]]:
    """Return operator, ranks, payloads in bytes and latencies in nanoseconds of each collective, by growing payload.

    An all-reduce is the engine's own kernel within CUDA graphs; the others are NCCL's. Messages count elements of two bytes.
    """
    own = read_table(folder, "custom_allreduce", ("num_gpus", "message_size", "backend", "op_name")).where(backend="vllm_graph")
    nccl = read_table(folder, "nccl", ("num_gpus", "message_size", "nccl_dtype", "op_name")).where(nccl_dtype="half")
    found = []
    for table, operators in ((own, ("all_reduce",)), (nccl, ("all_gather", "reduce_scatter"))):
        for operator in operators:
            for ranks in np.unique(table["num_gpus"]):
                rows = table.where(op_name=operator, num_gpus=ranks)
                order = np.argsort(rows["message_size"])
                sizes = 2 * np.asarray(rows["message_size"], dtype=np.int64)[order]
                found.append((operator, int(ranks), sizes, rows.latency_ns[order]))
    return found
