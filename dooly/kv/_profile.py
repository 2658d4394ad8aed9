"""What a policy's selection takes on this machine: traced, measured and kept in a store, where simulations find it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError
from dooly.kv._policy import Policy
from dooly.kv._registry import find_policy
from dooly.kv_policy import WINDOW_SIZE, KVPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dbstore import Store
    from dooly.kv._structured import AttentionShape
    from dooly.measure import ProfileResult


def profile_selection(  # noqa: PLR0913 - what to measure, and how far to go
    store: Store,
    policy: KVPolicy,
    shape: AttentionShape,
    num_tokens: Sequence[int],
    *,
    budget_s: float | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ProfileResult:
    """Measure the selection of one layer, as `dooly.profile_module` does, on the CPU in float32, and keep what it is made of.

    `dooly simulate --db` then takes it for measured on such a device, for a model in float32; for others it is an estimate.

    Args:
        store: An open, writable store.
        policy: The policy at its budget.
        shape: The attention of the model that it is for, on one rank.
        num_tokens: Lengths of prompts to measure.
        budget_s: Seconds to measure at most; None measures all.
        progress: Told how many lengths are done, and of how many.

    Raises:
        InvalidInputError: The policy keeps all tokens, or the budget has no room for the window of the shortest prompt.
    """
    import torch

    from dooly.catalog import describe_module_environment, write_selection
    from dooly.kv._module import Selection
    from dooly.measure import profile_module
    from dooly.tracing import trace

    found, shortest = find_policy(policy.name), min(num_tokens)
    if not isinstance(found, Policy):
        raise InvalidInputError(f"dooly kv profile: {policy.name} selects while it prefills; give a policy that drops tokens")
    found.num_kept(shortest, policy.budget)
    module = Selection(found, policy.budget, shape)
    traced = trace(module, request_dims=dict.fromkeys(("keys", "values"), (None, "num_tokens")))
    keys = torch.randn(shape.num_kv_heads, shortest, shape.head_dim)
    with torch.no_grad():
        traced(torch.randn(shape.num_heads, WINDOW_SIZE, shape.head_dim), keys, torch.randn_like(keys))
        result = profile_module(traced, store, request_dims={"num_tokens": num_tokens}, budget_s=budget_s, progress=progress)
    write_selection(store, policy, shape.head_sizes, traced.traced, describe_module_environment(module))
    return result
