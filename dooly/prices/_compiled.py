"""What steps take, by a price sheet: loops that numba compiles. Import it where they are called.

A step is given by its amounts: sums over its requests, of which each grows by a known step in a run of decodes.
"""
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN202 - numba infers the types

from __future__ import annotations

from math import ceil, exp, sqrt
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dooly.prices._sheet import SheetArrays

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call, and keep the code on disk where numba finds a folder that it may write to."""
    try:
        made: Callable[..., Any] = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # "cannot cache function": a read-only installation without a home
        made = numba.njit(nogil=True, error_model="numpy")(function)
    return made


# Amounts of a step.
DECODE_KV, PAIRS, PREFILL_KV, PREFILL_TOKENS, DECODES, PREFILLS, LONGEST, DECODE_LONGEST, SQUARES, CACHED, NEW = range(11)
NUM_AMOUNTS = 11
# Numbers of attention.
_RUNS, _SOURCE, _FOREST, _FORESTS, _PER_PAIR, _PER_TOKEN, _HEADS, _KV_HEADS, _SMS, _FLOPS, _BANDWIDTH, _LEAST, _SHARED, _GAP = (
    range(14)
)
_QUERY_TILE = 128
_NUM_FEATURES = 13
_SLOTS = 1 << 13
"""Values of forests that are kept, at the most."""
_BINS = 1 << 12
"""More than the thresholds that a forest has for one amount."""


@compiled
def clear(amounts):
    """Set the amounts to those of a step without requests."""
    for place in range(len(amounts)):
        amounts[place] = 0.0


@compiled
def add_request(amounts, new, computed):
    """Add what a request with so many tokens to compute, behind so many that are, brings to a step."""
    read = new + computed
    amounts[LONGEST] = max(amounts[LONGEST], read)
    amounts[CACHED] += computed
    if new == 1:
        amounts[DECODE_KV] += read
        amounts[DECODES] += 1
        amounts[DECODE_LONGEST] = max(amounts[DECODE_LONGEST], read)
        amounts[SQUARES] += read * read
    else:
        amounts[PAIRS] += read * (read + 1) // 2 - computed * (computed + 1) // 2
        amounts[PREFILL_KV] += read
        amounts[PREFILL_TOKENS] += new
        amounts[PREFILLS] += 1


@compiled
def add_position(amounts):
    """Make the amounts of a step of decodes those of the next one over the same requests."""
    amounts[SQUARES] += 2 * amounts[DECODE_KV] + amounts[DECODES]
    amounts[DECODE_KV] += amounts[DECODES]
    amounts[CACHED] += amounts[DECODES]
    amounts[LONGEST] += 1
    amounts[DECODE_LONGEST] += 1


@compiled
def is_within(sheet, amounts):
    """Tell whether a step keeps the limits of what can be priced."""
    num_tokens, num_reqs = amounts[PREFILL_TOKENS] + amounts[DECODES], amounts[PREFILLS] + amounts[DECODES]
    return num_tokens <= sheet.limits[0] and num_reqs <= sheet.limits[1] and amounts[LONGEST] <= sheet.limits[2]


@compiled
def _value(sheet, forest, features):
    """Return an ensemble's value."""
    question, place, total = sheet.first_question[forest], sheet.first_leaf[forest], sheet.bias[forest]
    for below in range(sheet.num_trees.shape[1]):
        depth = below + 1
        for _ in range(sheet.num_trees[forest, below]):
            number = 0
            for level in range(depth):
                number |= (features[sheet.feature[question + level]] > sheet.threshold[question + level]) << level
            total += sheet.leaf[place + number]
            question += depth
            place += 1 << depth
    return total


@compiled
def _roofline(price, flops, traffic):
    return price[_LEAST] + 1e9 * max(flops / price[_FLOPS], traffic / price[_BANDWIDTH])


@compiled
def _decodes(sheet, price, amounts, features):
    """Return what decodes take, by their family."""
    count, read = max(amounts[DECODES], 1.0), max(amounts[DECODE_KV], 1.0)
    flops, traffic = price[_PER_PAIR] * read, price[_PER_TOKEN] * (read + count) + price[_PER_PAIR] * count
    blocks = count * price[_KV_HEADS]
    features[0], features[1], features[2], features[3] = flops, traffic, count, read / count
    features[4], features[5], features[6] = blocks, blocks / price[_SMS], ceil(blocks / price[_SMS])
    return _roofline(price, flops, traffic) * exp(_value(sheet, int(price[_FOREST]), features))


@compiled
def _prefills(sheet, price, amounts, features):
    """Return what prefills take, by their family."""
    queries, pairs, read = max(amounts[PREFILL_TOKENS], 1.0), max(amounts[PAIRS], 1.0), max(amounts[PREFILL_KV], 1.0)
    flops, traffic = price[_PER_PAIR] * pairs, price[_PER_TOKEN] * (read + queries) + price[_PER_PAIR] * queries
    num_prefills = amounts[PREFILLS]
    tiles = max(price[_HEADS] * num_prefills * ceil(queries / max(num_prefills, 1.0) / _QUERY_TILE), 1.0)
    waves = ceil(tiles / price[_SMS])
    features[0], features[1], features[2], features[3] = flops, traffic, queries, pairs / queries
    features[4], features[5], features[6] = tiles, waves, waves * price[_SMS] / tiles
    return _roofline(price, flops, traffic) * exp(_value(sheet, int(price[_FOREST]) + 1, features))


@compiled
def _mixed(sheet, price, amounts, features):
    """Return what a batch of any kind takes, by an ensemble over all of them."""
    queries, pairs = amounts[DECODES] + amounts[PREFILL_TOKENS], amounts[DECODE_KV] + amounts[PAIRS]
    read = amounts[DECODE_KV] + amounts[PREFILL_KV]
    flops, traffic = price[_PER_PAIR] * pairs, price[_PER_TOKEN] * (read + queries) + price[_PER_PAIR] * queries
    count = max(amounts[DECODES], 1.0)
    mean = max(amounts[DECODE_KV] / count, 1.0)
    for place in range(6):  # a slice would take seconds to compile
        features[place] = amounts[place]
    features[6], features[7], features[8], features[9] = mean, amounts[DECODE_LONGEST], flops, traffic
    features[10] = amounts[PAIRS] / max(amounts[PREFILL_TOKENS], 1.0)
    features[11] = sqrt(max(amounts[SQUARES] / count - mean**2, 0.0)) / mean
    features[12] = amounts[DECODE_LONGEST] / mean
    return _roofline(price, flops, traffic) * exp(_value(sheet, int(price[_FOREST]), features))


@compiled
def _attention(sheet, price, amounts, features):
    """Return what one run of attention takes."""
    if price[_FORESTS] == 1:
        return _mixed(sheet, price, amounts, features) + price[_GAP]
    total = 0.0
    if amounts[DECODES] > 0:
        total += _decodes(sheet, price, amounts, features)
    if amounts[PREFILLS] > 0:
        total += _prefills(sheet, price, amounts, features)
    if amounts[DECODES] > 0 and amounts[PREFILLS] > 0:
        total -= price[_SHARED]
    return total + price[_GAP]


@compiled
def price_step(sheet, amounts, features, sums):
    """Return a step's latency in nanoseconds, and set `sums` to its parts by source.

    Args:
        sheet: The price sheet's arrays.
        amounts: The step's.
        features: Room for as many as a forest has.
        sums: Shape (num_sources,).
    """
    num_tokens, num_reqs = amounts[PREFILL_TOKENS] + amounts[DECODES], amounts[PREFILLS] + amounts[DECODES]
    per_ns, total = sheet.per_ns, 0.0
    for source in range(len(sums)):
        sums[source] = 0.0
        if sheet.tokens_ns.shape[1] > 0:
            sums[source] += sheet.tokens_ns[source, int(num_tokens)]
        if sheet.requests_ns.shape[1] > 0:
            sums[source] += sheet.requests_ns[source, int(num_reqs)]
    formula = per_ns[0] + per_ns[1] * num_tokens + per_ns[2] * num_reqs + per_ns[3] * amounts[NEW] + per_ns[4] * amounts[CACHED]
    sums[0] += formula + per_ns[5] * (amounts[DECODE_KV] + amounts[PAIRS])
    for row in range(len(sheet.attention)):
        price = sheet.attention[row]
        sums[int(price[_SOURCE])] += price[_RUNS] * _attention(sheet, price, amounts, features)
    for source in range(len(sums)):
        total += sums[source]
    return max(int(np.rint(total)), 1)


@compiled
def is_beyond(sheet, amounts):
    """Tell whether a step's price is extrapolated."""
    num_tokens = amounts[PREFILL_TOKENS] + amounts[DECODES]
    return amounts[DECODE_KV] > sheet.reach[0] or amounts[PAIRS] > sheet.reach[1] or num_tokens > sheet.reach[2]


@compiled
def price_steps(sheet: SheetArrays, new: Ints, computed: Ints, num_new_requests: Ints) -> tuple[Ints, Floats]:
    """Return the latencies of steps in nanoseconds, shape (num_steps,), and their parts, shape (num_steps, num_sources).

    Args:
        sheet: The price sheet's arrays; the steps must keep its limits.
        new: Tokens to compute of each request, shape (num_steps, num_reqs); 0 marks a place without a request.
        computed: Tokens in the KV cache of each request, of the same shape.
        num_new_requests: Requests that the engine sees for the first time, shape (num_steps,).
    """
    num_steps, num_sources = len(new), len(sheet.tokens_ns)
    steps_ns, sums = np.empty(num_steps, np.int64), np.empty((num_steps, num_sources))
    features, amounts = np.zeros(_NUM_FEATURES), np.empty(NUM_AMOUNTS)
    for step in range(num_steps):
        clear(amounts)
        amounts[NEW] = num_new_requests[step]
        for place in range(new.shape[1]):
            if new[step, place] > 0:
                add_request(amounts, new[step, place], computed[step, place])
        steps_ns[step] = price_step(sheet, amounts, features, sums[step])
    return steps_ns, sums
