"""Place the rows of aiconfigurator's tables at a model's operations: by widths, heads, sizes of experts, payloads of collectives.

Products of other widths than the model's are placed too, as the plain linear layers that they are: their family then tells what
the model's own widths take, where the tables lack them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.batch import Batch
from dooly.catalog import plain_linear
from dooly.errors import InvalidInputError
from dooly.imports import _aiconfigurator as tables
from dooly.imports._reading import Placed, Reading, check_ranks, measured_operations, ranks_of, sized_batches
from dooly.predict._features import BatchArrays
from dooly.predict._kinds import AttentionShape, Collective, Experts, LinearLayer, kind_of, products_beside
from dooly.predict._operation import OperationWork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from dooly.tracing import TracedModel, TracedOperation

    Floats = npt.NDArray[np.float64]
    Operations = list[tuple[TracedOperation, Any]]

SOURCE = "aiconfigurator (ai-dynamo/aiconfigurator), Apache-2.0, NVIDIA"
_GIVE = "a system's folder of aiconfigurator's tables of vLLM, as h200_sxm"
_DTYPE = "bfloat16"


def read_aiconfigurator(path: Path, traced: TracedModel) -> Reading:
    """Return what the tables of a system say of a model's operations, with the facts of how they were measured.

    Raises:
        InvalidInputError: There are no tables, none of the table's ranks, or one is of another engine, cannot be read or lacks a
            column.
    """
    known = [name for name in _PLACERS if tables.has_table(path, name)]
    if not known:
        raise InvalidInputError(f"{path}: holds no {', '.join(f'{name}_perf.parquet' for name in _PLACERS)}; give {_GIVE}")
    origins = {name: _origin(path, name) for name in known}
    if len(found := set(origins.values())) > 1:
        raise InvalidInputError(f"{path}: its tables are of {' and of '.join(map(' '.join, sorted(found)))}; give one's")
    engine_version, device = found.pop()
    operations = [(operation, kind_of(operation)) for operation in measured_operations(traced)]
    others = _plain_layers(path) if "gemm" in known else {}
    placed = [rows for name in known for rows in _PLACERS[name](path, name, operations)]
    placed += _collectives(path, ranks_of(traced), operations)
    used = Counter({name: sum(len(rows.batches) for rows in placed if rows.rows.startswith(f"{name}_perf")) for name in known})
    unplaced = {f"{name}_perf of other sizes or types": tables.num_rows(path, name) - used[name] for name in known}
    facts = {
        "device": device,
        "engine": "vllm",
        "engine_version": engine_version,
        "attention_backend": "FLASH_ATTN",
        "execution_mode": "cudagraph",
        "source": SOURCE,
    }
    return Reading(tuple(placed), {what: count for what, count in unplaced.items() if count}, facts, tuple(others.values()))


def _plain_layers(path: Path) -> dict[tuple[int, int], TracedOperation]:
    """Return the linear layers without a bias that were measured, by outputs and inputs."""
    rows = tables.linear_layers(path)
    pairs = np.unique(np.stack([rows["n"], rows["k"]]), axis=1).T.tolist()
    return {(n, k): plain_linear(n, k, _DTYPE) for n, k in pairs}


def _origin(path: Path, name: str) -> tuple[str, str]:
    """Return the engine's version and the device of a table."""
    rows = tables.read_table(path, name, ("framework", "version", "device"))
    framework, versions, devices = (sorted(set(rows[column])) for column in ("framework", "version", "device"))
    if [value.lower() for value in framework] != ["vllm"]:
        raise InvalidInputError(f"{path}: {name}_perf is of {' and '.join(framework) or 'nothing'}, not of vLLM; give {_GIVE}")
    return "+".join(versions), "+".join(devices)


def _linear_layers(path: Path, _name: str, operations: Operations) -> Iterator[Placed]:
    """Yield the products of each pair of widths: the model's own operation, or else a plain linear layer."""
    own = {(kind.n, kind.k): op for op, kind in operations if isinstance(kind, LinearLayer) and kind.dtype == _DTYPE}
    rows = tables.linear_layers(path)
    for (n, k), plain in _plain_layers(path).items():
        part = rows.where(n=n, k=k)
        operation = own.get((n, k), plain)
        yield Placed(operation, sized_batches(operation, part["m"].tolist()), part.latency_ns, "gemm_perf")


def _attention(path: Path, name: str, operations: Operations) -> Iterator[Placed]:
    rows = tables.attention(path, name)
    for operation, kind in operations:
        if isinstance(kind, AttentionShape) and kind.dtype == _DTYPE and kind.window is None:
            own = rows.where(num_heads=kind.num_heads, num_key_value_heads=kind.num_kv_heads, head_dim=kind.head_size)
            sizes = zip(*(own[column].tolist() for column in ("batch_size", "isl", "step")), strict=True)
            batches = tuple(Batch((new,) * count, (computed,) * count) for count, new, computed in sizes)
            if batches:
                yield Placed(operation, batches, own.latency_ns, f"{name}_perf")


def _experts(path: Path, name: str, operations: Operations) -> Iterator[Placed]:
    """Yield the experts of a model's sizes, with the products that the operation runs beside them where the tables have all."""
    for operation, kind in operations:
        if not isinstance(kind, Experts) or kind.dtype != _DTYPE:
            continue
        rows = tables.experts(path).where(hidden_size=kind.hidden_size, topk=kind.top_k, num_experts=kind.num_experts)
        within, own = rows["inter_size"] // rows["moe_tp_size"], rows["num_experts"] // rows["moe_ep_size"]
        rows = rows.kept((within == kind.intermediate_size) & (own == kind.num_local_experts))
        beside = products_beside(operation) or ()
        beside_ns = _products_ns(path, beside, rows["num_tokens"])
        if len(rows["num_tokens"]) and beside_ns is not None:
            batches = sized_batches(operation, rows["num_tokens"].tolist())
            table = f"{name}_perf + gemm_perf" if beside else f"{name}_perf"
            yield Placed(operation, batches, rows.latency_ns + beside_ns, table)


def _products_ns(path: Path, products: Sequence[LinearLayer], tokens: npt.NDArray[Any]) -> Floats | None:
    """Return what products take, between the measured sizes; None where one was not measured."""
    total = np.zeros(len(tokens))
    if products and not tables.has_table(path, "gemm"):
        return None
    for product in products:
        rows = tables.linear_layers(path, product.dtype).where(n=product.n, k=product.k)
        order = np.argsort(rows["m"])
        if not len(order):
            return None
        total += np.interp(tokens, rows["m"][order], rows.latency_ns[order])
    return total


def _collectives(path: Path, ranks: int, operations: Operations) -> Iterator[Placed]:
    """Yield the collectives of a model, between the payloads that were measured: those are powers of two, tokens are whole."""
    if ranks == 1:
        return
    has_both = all(tables.has_table(path, name) for name in ("custom_allreduce", "nccl"))
    measured = {(operator, number): (sizes, ns) for operator, number, sizes, ns in (tables.collectives(path) if has_both else ())}
    check_ranks(path, ranks, (1, *(number for _, number in measured)))
    for operation, kind in operations:
        if not isinstance(kind, Collective):
            continue
        # Gathering on one rank moves what gathering on all does into that rank, by the same links.
        operator = "all_gather" if kind.operator == "gather" else kind.operator
        if (found := measured.get((operator, kind.num_ranks))) is None:
            continue
        sizes, latency_ns = found
        one = float(OperationWork(operation).payload_bytes(BatchArrays.of(sized_batches(operation, (1,))))[0])
        tokens = np.unique(np.rint(sizes / one))
        tokens = tokens[(tokens >= 1) & (tokens * one >= sizes[0]) & (tokens * one <= sizes[-1]) & (tokens <= _MOST_TOKENS)]
        if not len(tokens):
            continue
        logs = np.interp(np.log(tokens * one), np.log(sizes), np.log(latency_ns))
        table = f"{'custom_allreduce' if operator == 'all_reduce' else 'nccl'}_perf, interpolated"
        yield Placed(operation, sized_batches(operation, tokens.astype(int).tolist()), np.exp(logs), table)


_MOST_TOKENS = 1 << 15
"""As many as any product was measured over: a batch of more is none."""
_PLACERS: dict[str, Callable[[Path, str, Operations], Iterator[Placed]]] = {
    "gemm": _linear_layers,
    "context_attention": _attention,
    "generation_attention": _attention,
    "moe": _experts,
}
