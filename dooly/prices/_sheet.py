"""What the latency of any step is computed from: a closed formula, tables by tokens and by requests, and attention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import InvalidInputError
from dooly.prices._arrays import sheet_arrays

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.prices._arrays import SheetArrays
    from dooly.prices._forest import Forest

    Floats = npt.NDArray[np.float64]

_UNLIMITED = 1 << 62
_BOTH = 2


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPrice:
    """Attention over a paged KV cache: its roofline (Williams et al., CACM 2009), times e to the power of an ensemble's value."""

    num_runs: int
    """How often a step runs it."""
    source: int
    """Row of the sheet's sums that it counts to."""
    forests: tuple[Forest, ...]
    """One over batches of any kind, or two: over what decodes, and over what prefills, one after the other."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key/value heads."""
    head_size: int
    """Size of a head."""
    item_bytes: float
    """Bytes of an element in the cache."""
    num_sms: int
    """Multiprocessors of the device."""
    flops_per_s: float
    """Its rate."""
    bytes_per_s: float
    """Its bandwidth."""
    least_ns: float
    """What the roofline begins with, in nanoseconds."""
    shared_ns: float
    """What decodes and prefills take once in a step that holds both, where they are priced apart."""
    gap_ns: float
    """What passes before the next operation."""

    def record(self, first_forest: int) -> tuple[float, ...]:
        """Return all of it as compiled loops read it, the forests by number."""
        per_pair = 4 * self.num_heads * self.head_size
        per_token = 2 * self.num_kv_heads * self.head_size * self.item_bytes
        places = (self.num_runs, self.source, first_forest, len(self.forests))
        sizes = (per_pair, per_token, self.num_heads, self.num_kv_heads, self.num_sms)
        return (*places, *sizes, self.flops_per_s, self.bytes_per_s, self.least_ns, self.shared_ns, self.gap_ns)


@dataclass(frozen=True, eq=False)
class PriceSheet:
    """Prices any step by sums over its requests, each part towards the sum of one of several sources.

    A step's latency is the sum of all parts, rounded to nanoseconds, and at least 1.

    Raises:
        InvalidInputError: Arrays do not go together, or attention counts to a row that there is not.
    """

    per_ns: Floats
    """Nanoseconds of a step, and of each token, request, new request, cached token and query-key pair in it, shape (6,); they
    count to the first source."""
    tokens_ns: Floats
    """Nanoseconds by the tokens of a step from 0, shape (num_sources, max_num_tokens + 1); or of shape (num_sources, 0)."""
    requests_ns: Floats
    """The same by requests."""
    attention: tuple[AttentionPrice, ...] = ()
    """What depends on contexts."""
    max_num_tokens: int = _UNLIMITED
    """Most tokens of a step that can be priced."""
    max_num_reqs: int = _UNLIMITED
    """Most requests."""
    max_context: int = _UNLIMITED
    """Most positions that a request reads."""
    reach: tuple[float, float, float] = (np.inf, np.inf, np.inf)
    """Positions that all decodes read, query-key pairs of prefills, and tokens, beyond which a step's price is extrapolated."""

    def __post_init__(self) -> None:
        num_sources = len(self.tokens_ns)
        if self.per_ns.shape != (6,) or self.requests_ns.shape[0] != num_sources or num_sources < 1:
            raise InvalidInputError(
                f"PriceSheet: per_ns must have shape (6,), got {self.per_ns.shape}, and the tables a row a source, "
                f"got {self.tokens_ns.shape} and {self.requests_ns.shape}"
            )
        for table, limit, name in (
            (self.tokens_ns, self.max_num_tokens, "tokens_ns"),
            (self.requests_ns, self.max_num_reqs, "requests_ns"),
        ):
            if table.shape[1] and table.shape[1] <= limit:
                raise InvalidInputError(f"PriceSheet: {name} ends at {table.shape[1] - 1}, and its limit is {limit}; lower that")
        if any(not 0 <= price.source < num_sources or len(price.forests) not in {1, _BOTH} for price in self.attention):
            raise InvalidInputError(f"PriceSheet: attention must count to a source of 0..{num_sources - 1}, by one forest or two")

    @cached_property
    def arrays(self) -> SheetArrays:
        """The sheet as compiled loops take it."""
        limits = (self.max_num_tokens, self.max_num_reqs, self.max_context, *self.reach)
        starts = np.cumsum([0, *(len(price.forests) for price in self.attention)]).tolist()
        return sheet_arrays(
            (*self.per_ns.tolist(), *limits),
            np.ascontiguousarray(self.tokens_ns),
            np.ascontiguousarray(self.requests_ns),
            [price.record(start) for price, start in zip(self.attention, starts, strict=False)],
            [(forest, len(price.forests) > place + 1) for price in self.attention for place, forest in enumerate(price.forests)],
        )
