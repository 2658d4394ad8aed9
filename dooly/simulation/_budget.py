"""How a step's budget of tokens is shared among the running requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dooly.simulation._kv_cache import Counts, KVCache


def within_budget(kv_cache: KVCache, requests: Counts, computed: Counts, wanted: Counts, budget: int) -> Counts:
    """Return the tokens granted to requests in order: what they want, within the budget, and up to where their steps must stop.

    Args:
        kv_cache: Tells where steps must stop.
        requests: Their positions in the workload, shape (num_reqs,).
        computed: Tokens of each that are computed, shape (num_reqs,).
        wanted: Tokens that each could compute, shape (num_reqs,).
        budget: Tokens for all.

    Returns:
        Counts of shape (num_reqs,), 0 for those that are not served.
    """
    if not kv_cache.aligns:
        return np.diff(np.minimum(np.cumsum(wanted), budget), prepend=0) if int(wanted.sum()) > budget else wanted
    granted = wanted.copy()
    for place, (request, start, count) in enumerate(zip(requests.tolist(), computed.tolist(), wanted.tolist(), strict=True)):
        within = min(count, budget)
        if within > 0:
            within = kv_cache.aligned(request, start, start + within) - start
        granted[place] = within
        budget -= within
    return granted
