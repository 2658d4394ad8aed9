"""How many drafts are accepted: drawn by request and place in its answer, so that no batch nor schedule changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.simulation._kv_cache import Counts
    from dooly.simulation._workload import Request
    from dooly.speculation import SpeculativeConfig

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIXES = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_LAST = np.uint64(31)
_SPARE_BITS = np.uint64(11)
"""Of 64, those that a double has no room for."""


class Acceptance:
    """Draws how many drafts of requests are accepted. Requests go by their positions in the workload."""

    def __init__(self, requests: Sequence[Request], config: SpeculativeConfig) -> None:
        """Take the rates, and what tells requests apart: their `request_id`."""
        ids = np.array([request.request_id for request in requests], np.int64).astype(np.uint64)
        self._streams = _mixed(_mixed(ids + _GAMMA) ^ np.full_like(ids, config.seed))
        self._rates = np.array(config.acceptance_rates)

    def of(self, requests: Counts, num_output_tokens: Counts) -> Counts:
        """Return how many drafts behind so many output tokens of requests are accepted; all have shape (num_reqs,).

        One number decides about all drafts of a step: those at position i are accepted as often as the rate there says.
        """
        bits = _mixed(self._streams[requests] + num_output_tokens.astype(np.uint64) * _GAMMA)
        uniform = (bits >> _SPARE_BITS).astype(np.float64) / (1 << 53)
        return np.asarray((uniform[:, None] < self._rates).sum(axis=1), np.int64)


def _mixed(bits: np.typing.NDArray[np.uint64]) -> np.typing.NDArray[np.uint64]:
    """Return the finaliser of SplitMix64 (Steele, Lea and Flood 2014): counters become bits without a pattern."""
    for shift, factor in _MIXES:
        bits = (bits ^ (bits >> shift)) * factor
    return bits ^ (bits >> _LAST)
