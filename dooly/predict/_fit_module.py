"""`dooly.load_module_latency`: fit the latency of a plain module to the records of a store."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dbstore import Environment
from dooly.catalog import (
    check_store,
    feasible_records,
    medians,
    module_environment,
    pass_medians,
    sizes_at,
    told_apart,
    warn_if_disturbed,
    with_whole_module,
)
from dooly.errors import InvalidInputError, spell
from dooly.predict._fit_sizes import fit_sizes
from dooly.predict._kept_fits import KeptFits
from dooly.predict._module_latency import ModuleLatency, ModuleMember, member_ns, whole_terms
from dooly.predict._operation import OperationWork
from dooly.predict._regressor import Regressor, fit_regressor
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from dbstore import JSON, Record, Store
    from dooly.tracing import Traced, TracedOperation


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

    Examples:
        >>> import torch
        >>> store = dooly.Store.open("db", "a")
        >>> traced = dooly.trace(torch.nn.Linear(64, 32), request_dims={"input": ("num_tokens",)})
        >>> _ = traced(torch.ones(4, 64))
        >>> _ = dooly.profile_module(traced, store, request_dims={"num_tokens": (1, 8)})
        >>> dooly.load_module_latency(traced, store)(num_tokens=4).seconds > 0
        True
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
    warn_if_disturbed(table.model, records.values())
    kept = KeptFits(store, chosen.digest)
    fitted: dict[str, Regressor] = {}
    for operation in table.operations[:-1]:
        if operation.signature not in fitted:
            fit = partial(_fit, operation, records[operation.signature])
            fitted[operation.signature] = Regressor.from_json(kept.get("module operation", (operation,), fit))
    members = tuple(ModuleMember(op, OperationWork(op), fitted[op.signature]) for op in table.operations[:-1])
    whole = table.operations[-1]
    points, latency_ns = medians(records[whole.signature])
    passes_ns = pass_medians(records[whole.signature])
    measured = sizes_at(points, whole.request_dims)
    sizes = dict(zip(whole.request_dims, measured.T, strict=True))
    inner_ns = np.sum([member_ns(member, sizes, len(points)) for member in members], axis=0)

    def fit_whole() -> JSON:
        return fit_regressor(whole_terms(inner_ns), measured, latency_ns, passes_ns).to_json()

    regressor = Regressor.from_json(kept.get("module", (whole, *table.operations[:-1]), fit_whole))
    return ModuleLatency(table, chosen, members, regressor, measured.astype(np.int64))


def _fit(operation: TracedOperation, records: tuple[Record, ...]) -> JSON:
    return fit_sizes(OperationWork(operation), records).to_json()


def _records(store: Store, operation: TracedOperation, environment: Environment, model: str) -> tuple[Record, ...]:
    place = f"{environment.device} with {environment.num_threads} threads"
    call = "call dooly.profile_module(traced, store, request_dims=...)"
    return feasible_records(store, operation, environment, place, (f"{call} on {model}", f"{call} on {model} with smaller sizes"))
