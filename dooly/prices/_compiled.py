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

from dooly.prices._arrays import MAX_CUTS, MAX_DEPTH, MAX_FORESTS

if TYPE_CHECKING:
    from collections.abc import Callable


_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call, and keep the code on disk where numba finds a folder that it may write to."""
    try:
        made: Callable[..., Any] = numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # "cannot cache function": a read-only installation without a home
        made = numba.njit(**_OPTIONS)(function)
    return made


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that compiled ones alone call, and are kept with."""
    made: Callable[..., Any] = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)
    return made


_QUERY_TILE = 128
_MIX = 0x9E3779B97F4A7C1
"""An odd number that spreads neighbours (Knuth, The Art of Computer Programming, 6.4)."""


@part
def clear(amounts):
    """Set the amounts to those of a step without requests."""
    amounts.decode_kv_tokens = amounts.prefill_pairs = amounts.prefill_kv_tokens = amounts.prefill_tokens = 0.0
    amounts.num_decodes = amounts.num_prefills = amounts.longest = amounts.decode_longest = amounts.decode_kv_squares = 0.0
    amounts.cached_tokens = amounts.num_new_requests = 0.0


@part
def add_request(amounts, new, computed):
    """Add what a request with so many tokens to compute, behind so many that are, brings to a step."""
    read = new + computed
    amounts.longest = max(amounts.longest, read)
    amounts.cached_tokens += computed
    if new == 1:
        amounts.decode_kv_tokens += read
        amounts.num_decodes += 1
        amounts.decode_longest = max(amounts.decode_longest, read)
        amounts.decode_kv_squares += read * read
    else:
        amounts.prefill_pairs += read * (read + 1) // 2 - computed * (computed + 1) // 2
        amounts.prefill_kv_tokens += read
        amounts.prefill_tokens += new
        amounts.num_prefills += 1


@part
def add_position(amounts):
    """Make the amounts of a step of decodes those of the next one over the same requests."""
    amounts.decode_kv_squares += 2 * amounts.decode_kv_tokens + amounts.num_decodes
    amounts.decode_kv_tokens += amounts.num_decodes
    amounts.cached_tokens += amounts.num_decodes
    amounts.longest += 1
    amounts.decode_longest += 1


@part
def is_within(sheet, amounts):
    """Tell whether a step keeps the limits of what can be priced."""
    limits, num_reqs = sheet.numbers, amounts.num_prefills + amounts.num_decodes
    if num_reqs > limits.max_num_reqs or amounts.longest > limits.max_context:
        return False
    return amounts.prefill_tokens + amounts.num_decodes <= limits.max_num_tokens


@part
def _value(sheet, number, features):
    """Return an ensemble's value."""
    forest, questions = sheet.forests[number], sheet.questions
    question, place, total = forest.question, forest.leaf, forest.bias
    for below in range(MAX_DEPTH):
        depth = below + 1
        for _ in range(forest.num_trees[below]):
            answers = 0
            for level in range(depth):
                asked = questions[question + level]
                answers |= (features[asked.feature] > asked.threshold) << level
            total += sheet.leaf[place + answers]
            question += depth
            place += 1 << depth
    return total


@part
def _roofline(price, flops, traffic):
    return price.least_ns + 1e9 * max(flops / price.flops_per_s, traffic / price.bytes_per_s)


@part
def _place(cuts, first, last, value):
    """Return how many of the growing cuts from `first` to before `last` a value exceeds."""
    low, high = first, last
    while low < high:
        middle = (low + high) // 2
        if value > cuts[middle]:
            low = middle + 1
        else:
            high = middle
    return low - first


@part
def _known_value(sheet, number, scratch):
    """Return the value of an ensemble over decodes, looked up where it has answered alike before.

    Of the features, the first, second and fourth grow with contexts; all others follow from the third, the number of requests.
    """
    features, cuts = scratch.features, sheet.forests[number].cuts
    if cuts[3] == cuts[0]:
        return _value(sheet, number, features)
    key = int(features[2]) * MAX_FORESTS + number
    key = key * (MAX_CUTS + 1) + _place(sheet.cuts, cuts[0], cuts[1], features[0])
    key = key * (MAX_CUTS + 1) + _place(sheet.cuts, cuts[1], cuts[2], features[1])
    key = key * (MAX_CUTS + 1) + _place(sheet.cuts, cuts[2], cuts[3], features[3])
    slot = ((key * _MIX) >> 32) & (len(scratch.keys) - 1)
    if scratch.keys[slot] != key:
        scratch.keys[slot], scratch.values[slot] = key, _value(sheet, number, features)
    return scratch.values[slot]


@part
def ask_decodes(price, amounts, features):
    """Set the features of the forest over decodes, and return what their roofline says."""
    count, read = max(amounts.num_decodes, 1.0), max(amounts.decode_kv_tokens, 1.0)
    flops, traffic = price.per_pair * read, price.per_token * (read + count) + price.per_pair * count
    blocks = count * price.num_kv_heads
    features[0], features[1], features[2], features[3] = flops, traffic, count, read / count
    features[4], features[5], features[6] = blocks, blocks / price.num_sms, ceil(blocks / price.num_sms)
    return _roofline(price, flops, traffic)


@part
def ask_prefills(price, amounts, features):
    """Set the features of the forest over prefills, and return what their roofline says."""
    queries, pairs, read = max(amounts.prefill_tokens, 1.0), max(amounts.prefill_pairs, 1.0), max(amounts.prefill_kv_tokens, 1.0)
    flops, traffic = price.per_pair * pairs, price.per_token * (read + queries) + price.per_pair * queries
    num_prefills = amounts.num_prefills
    tiles = max(price.num_heads * num_prefills * ceil(queries / max(num_prefills, 1.0) / _QUERY_TILE), 1.0)
    waves = ceil(tiles / price.num_sms)
    features[0], features[1], features[2], features[3] = flops, traffic, queries, pairs / queries
    features[4], features[5], features[6] = tiles, waves, waves * price.num_sms / tiles
    return _roofline(price, flops, traffic)


@part
def ask_mixed(price, amounts, features):
    """Set the features of a forest over batches of any kind, and return what the roofline of one says."""
    queries, pairs = amounts.num_decodes + amounts.prefill_tokens, amounts.decode_kv_tokens + amounts.prefill_pairs
    read = amounts.decode_kv_tokens + amounts.prefill_kv_tokens
    flops, traffic = price.per_pair * pairs, price.per_token * (read + queries) + price.per_pair * queries
    count = max(amounts.num_decodes, 1.0)
    mean = max(amounts.decode_kv_tokens / count, 1.0)
    features[0], features[1], features[2] = amounts.decode_kv_tokens, amounts.prefill_pairs, amounts.prefill_kv_tokens
    features[3], features[4], features[5] = amounts.prefill_tokens, amounts.num_decodes, amounts.num_prefills
    features[6], features[7], features[8], features[9] = mean, amounts.decode_longest, flops, traffic
    features[10] = amounts.prefill_pairs / max(amounts.prefill_tokens, 1.0)
    features[11] = sqrt(max(amounts.decode_kv_squares / count - mean**2, 0.0)) / mean
    features[12] = amounts.decode_longest / mean
    return _roofline(price, flops, traffic)


@part
def _attention(sheet, price, amounts, scratch):
    """Return what one run of attention takes."""
    features = scratch.features
    if price.num_forests == 1:
        return ask_mixed(price, amounts, features) * exp(_value(sheet, price.forest, features)) + price.gap_ns
    total = 0.0
    if amounts.num_decodes > 0:
        total += ask_decodes(price, amounts, features) * exp(_known_value(sheet, price.forest, scratch))
    if amounts.num_prefills > 0:
        total += ask_prefills(price, amounts, features) * exp(_value(sheet, price.forest + 1, features))
    if amounts.num_decodes > 0 and amounts.num_prefills > 0:
        total -= price.shared_ns
    return total + price.gap_ns


@part
def _formula(sheet, amounts, num_tokens, num_reqs):
    """Return what the closed formula says of a step."""
    per = sheet.numbers
    pairs = amounts.decode_kv_tokens + amounts.prefill_pairs
    total = per.step_ns + per.token_ns * num_tokens + per.request_ns * num_reqs + per.new_request_ns * amounts.num_new_requests
    return total + per.cached_token_ns * amounts.cached_tokens + per.pair_ns * pairs


@part
def tables_ns(sheet, source, amounts, num_tokens, num_reqs):
    """Return what a source says of a step without its attention."""
    part = 0.0
    if sheet.tokens_ns.shape[1] > 0:
        part += sheet.tokens_ns[source, int(num_tokens)]
    if sheet.requests_ns.shape[1] > 0:
        part += sheet.requests_ns[source, int(num_reqs)]
    if source == 0:
        part += _formula(sheet, amounts, num_tokens, num_reqs)
    return part


@part
def note_total(sheet, amounts, total, priced_ns):
    """Note a step's price where the step goes beyond what was measured, and return it in whole nanoseconds."""
    limits, num_tokens = sheet.numbers, amounts.prefill_tokens + amounts.num_decodes
    reads_more = amounts.decode_kv_tokens > limits.decode_reach or amounts.prefill_pairs > limits.pairs_reach
    if reads_more or num_tokens > limits.tokens_reach:
        priced_ns[len(priced_ns) - 1] += total
    return max(int(np.rint(total)), 1)


@part
def price_step(sheet, amounts, scratch, priced_ns):
    """Return a step's latency in nanoseconds.

    Args:
        sheet: The price sheet's arrays.
        amounts: The step's.
        scratch: What `new_scratch` returned.
        priced_ns: Parts of all steps' prices by source, and in the last place those of extrapolated ones, shape
            (num_sources + 1,); the step's are added.
    """
    num_tokens, num_reqs = amounts.prefill_tokens + amounts.num_decodes, amounts.num_prefills + amounts.num_decodes
    total = 0.0
    for source in range(len(priced_ns) - 1):
        part = tables_ns(sheet, source, amounts, num_tokens, num_reqs)
        for row in range(len(sheet.attention)):
            if sheet.attention[row].source == source:
                part += sheet.attention[row].num_runs * _attention(sheet, sheet.attention[row], amounts, scratch)
        priced_ns[source] += part
        total += part
    return note_total(sheet, amounts, total, priced_ns)
