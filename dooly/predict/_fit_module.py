"""`dooly.load_module_latency`: fit the latency of a plain module to the records of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dbstore import Environment
from dooly.catalog import check_store, feasible_records, medians, module_environment, told_apart, with_whole_module
from dooly.errors import InvalidInputError, spell
from dooly.predict._module_latency import ModuleLatency, ModuleMember, member_ns, whole_terms
from dooly.predict._operation import OperationWork
from dooly.predict._regressor import fit_regressor
from dooly.tracing import TracedModel, evaluate_form, form_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from dbstore import Record, Store
    from dooly.predict._regressor import Regressor
    from dooly.tracing import Traced, TracedOperation

    Floats = npt.NDArray[np.float64]


_LARGEST = 2.0**62
_TOLERANCE = 1e-6
_NUM_HALVINGS = 100
"""Each halves the distance on a scale of ratios: enough to tell neighbouring floating-point numbers apart."""


def load_module_latency(traced: Traced | TracedModel, store: Store, environment: Environment | None = None) -> ModuleLatency:
    """Fit the latency model of a plain module to what a store holds about its operations.

    Args:
        traced: The traced module, or its table of operations (`traced.traced`), which needs no torch.
        store: An open store that `dooly.profile_module` filled.
        environment: Where the module was measured; where it is left out, this machine, or the only one in the store.

    Raises:
        MissingOperationError: The store lacks an operation of the module; the message names it and the call that measures it.
        InvalidInputError: The store holds the module in several environments, and none is given; or an argument is not what it
            should be, such as a module that `dooly.trace` did not make, or a path for a store.
        TraceError: The module has not run yet.
    """
    plain = getattr(traced, "traced", traced)  # no look at the class `Traced`: it loads torch
    if not isinstance(plain, TracedModel):
        raise InvalidInputError(
            f"dooly.load_module_latency: traced: {spell(traced)} is no traced module; give dooly.trace(module), called once"
        )
    check_store("load_module_latency", store)
    if not isinstance(environment, Environment | None):
        raise InvalidInputError(
            f"dooly.load_module_latency: environment: {spell(environment)} is no dbstore.Environment; give one, or leave it out"
        )
    table = with_whole_module(told_apart(plain, store))
    chosen = environment or module_environment(store, table)
    records = {op.signature: _records(store, op, chosen, table.model) for op in table.operations}
    fitted: dict[str, Regressor] = {}
    for operation in table.operations[:-1]:
        if operation.signature not in fitted:
            fitted[operation.signature] = _fit_operation(OperationWork(operation), records[operation.signature])
    members = tuple(ModuleMember(op, OperationWork(op), fitted[op.signature]) for op in table.operations[:-1])
    whole = table.operations[-1]
    points, latency_ns = medians(records[whole.signature])
    measured = np.array([point["dims"] for point in points], dtype=np.int64)
    sizes = dict(zip(whole.request_dims, measured.T.astype(np.float64), strict=True))
    inner_ns = np.sum([member_ns(member, sizes, len(points)) for member in members], axis=0)
    regressor = fit_regressor(whole_terms(inner_ns), measured.astype(np.float64), latency_ns)
    return ModuleLatency(table, chosen, members, regressor, measured)


def _fit_operation(work: OperationWork, records: Sequence[Record]) -> Regressor:
    points, latency_ns = medians(records)
    measured = np.array([point["dims"] for point in points], dtype=np.float64)
    sizes = sizes_behind(work.operation.request_dims, measured)
    return fit_regressor(work.roofline_terms(sizes, len(points)), measured, latency_ns)


def sizes_behind(request_dims: Sequence[str], measured: Floats) -> dict[str, Floats]:
    """Return sizes of the model's request dimensions at which an operation's own have measured values.

    An operation may run over an expression such as `batch*seq` alone: any sizes that give its value do as well, since nothing
    else enters the operation. What the expressions leave open is 1.

    Args:
        request_dims: The operation's request dimensions, each a name or an expression, linear in its first name
            or growing with it.
        measured: Their values, shape (num_points, num_dims).

    Raises:
        InvalidInputError: No sizes give an expression its values.
    """
    sizes: dict[str, Floats] = {}
    # Names first: they leave less open in the expressions.
    for dim, values in sorted(zip(request_dims, measured.T, strict=True), key=lambda pair: len(form_names(pair[0]))):
        unknown = [name for name in form_names(dim) if name not in sizes]
        sizes |= {name: np.ones(len(values)) for name in unknown}
        if unknown:
            sizes[unknown[0]] = _size_behind(dim, unknown[0], sizes, values)
        found = np.broadcast_to(evaluate_form(dim, sizes), values.shape)
        if not np.allclose(found, values, rtol=_TOLERANCE):
            wrong = values[np.argmax(~np.isclose(found, values, rtol=_TOLERANCE))]
            raise InvalidInputError(
                f"request dimension {dim}: no size of {' and '.join(form_names(dim)) or 'the batch'} gives its measured value "
                f"{wrong:g}; pass that size to forward as a number, and name it in request_dims"
            )
    return sizes


def _size_behind(dim: str, name: str, sizes: Mapping[str, Floats], values: Floats) -> Floats:
    """Return the size of one name that gives an expression its values: where it is linear by its slope, else by bisection."""

    def at(size: float | Floats) -> Floats:
        found: Floats = evaluate_form(dim, {**sizes, name: size * np.ones(len(values))})
        return found

    slope = at(2.0) - at(1.0)
    if slope.all():
        size = 1 + (values - at(1.0)) / slope
        if np.allclose(at(size), values, rtol=_TOLERANCE):
            return size
    low, high = np.full(len(values), 1 / _LARGEST), np.full(len(values), _LARGEST)
    for _ in range(_NUM_HALVINGS):
        middle = np.sqrt(low * high)
        reached = at(middle) >= values
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return high


def _records(store: Store, operation: TracedOperation, environment: Environment, model: str) -> tuple[Record, ...]:
    place = f"{environment.device} with {environment.num_threads} threads"
    call = "call dooly.profile_module(traced, store, request_dims=...)"
    return feasible_records(store, operation, environment, place, (f"{call} on {model}", f"{call} on {model} with smaller sizes"))
