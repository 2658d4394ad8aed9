"""What a store holds about the selections of KV-cache policies: each a plain module that was traced and measured."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from dooly.catalog._models import NO_MODEL, write_document_of
from dooly.catalog._trace_version import trace_version
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from dbstore import Environment, Store
    from dooly.kv_policy import HeadSizes, KVPolicy


def write_selection(store: Store, policy: KVPolicy, sizes: HeadSizes, traced: TracedModel, environment: Environment) -> None:
    """Write the document that leads from a policy and a shape of attention to the operations of its selection.

    Args:
        store: The store.
        policy: The policy at its budget.
        sizes: The sizes of attention.
        traced: The selection of one layer.
        environment: What it was measured in.
    """
    write_document_of(store, _digest(policy, sizes), (f"selection of {policy}", NO_MODEL), traced, environment)


def read_selection(store: Store, policy: KVPolicy, sizes: HeadSizes) -> tuple[tuple[TracedModel, str], ...]:
    """Return the selections of a policy that were measured, each with the digest of its environment; arguments as there."""
    prefix = f"{_digest(policy, sizes)}-"
    documents: list[Any] = [store.read_document("traces", name) for name in store.documents("traces") if name.startswith(prefix)]
    return tuple((TracedModel.from_json(document["traced"]), document["environment"]) for document in documents)


def _digest(policy: KVPolicy, sizes: HeadSizes) -> str:
    found = [trace_version(), "kv selection", policy.name, policy.budget, *sizes]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]
