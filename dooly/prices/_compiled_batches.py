"""What many steps take, by a price sheet: loops that numba compiles. Import it where they are called.

A forest is larger than the caches near a core. Where each of its trees answers for all steps before the next is read, it takes a
third of the time.
"""
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN202 - numba infers the types

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING

import numpy as np

from dooly.prices._arrays import AMOUNTS, MAX_DEPTH, NUM_FEATURES
from dooly.prices._compiled import (
    add_request,
    ask_decodes,
    ask_mixed,
    ask_prefills,
    clear,
    compiled,
    note_total,
    part,
    price_step,
    tables_ns,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.prices._arrays import Scratch, SheetArrays

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

_TILE = 256
"""Steps whose features stay in the first cache."""
_FEW = 8
"""Steps below which one after the other is faster."""


@part
def _values(sheet, number, features, answers, values):
    """Set an ensemble's values for steps, whose features have the shape (13, num_steps)."""
    forest, questions, leaf, num_steps = sheet.forests[number], sheet.questions, sheet.leaf, len(values)
    question, place = forest.question, forest.leaf
    values[:] = forest.bias
    for below in range(MAX_DEPTH):
        depth = below + 1
        for _ in range(forest.num_trees[below]):
            answers[:] = 0
            for level in range(depth):
                column, threshold = features[questions[question + level].feature], questions[question + level].threshold
                bit = 1 << level
                for step in range(num_steps):
                    answers[step] |= bit if column[step] > threshold else 0
            for step in range(num_steps):
                values[step] += leaf[place + answers[step]]
            question += depth
            place += 1 << depth


@part
def _attention_of_steps(sheet, price, amounts, room, attention_ns):
    """Set what one run of attention takes in each step."""
    features, answers, values, roofline_ns = room
    num_steps = len(amounts)
    if price.num_forests == 1:
        for step in range(num_steps):
            roofline_ns[step] = ask_mixed(price, amounts[step], features[:, step])
        _values(sheet, price.forest, features, answers, values)
        for step in range(num_steps):
            attention_ns[step] = roofline_ns[step] * exp(values[step]) + price.gap_ns
        return
    for step in range(num_steps):
        roofline_ns[step] = ask_decodes(price, amounts[step], features[:, step])
    _values(sheet, price.forest, features, answers, values)
    for step in range(num_steps):
        attention_ns[step] = roofline_ns[step] * exp(values[step]) if amounts[step].num_decodes > 0 else 0.0
    for step in range(num_steps):
        roofline_ns[step] = ask_prefills(price, amounts[step], features[:, step])
    _values(sheet, price.forest + 1, features, answers, values)
    for step in range(num_steps):
        if amounts[step].num_prefills > 0:
            attention_ns[step] += roofline_ns[step] * exp(values[step])
        if amounts[step].num_decodes > 0 and amounts[step].num_prefills > 0:
            attention_ns[step] -= price.shared_ns
        attention_ns[step] += price.gap_ns


@part
def _price_tile(sheet, amounts, steps_ns, priced_ns):
    """Set the latencies of some steps, and their parts by source."""
    num_steps, num_rows = len(amounts), len(sheet.attention)
    attention_ns = np.empty((num_rows, num_steps))
    room = np.empty((NUM_FEATURES, num_steps)), np.empty(num_steps, np.int64), np.empty(num_steps), np.empty(num_steps)
    for row in range(num_rows):
        _attention_of_steps(sheet, sheet.attention[row], amounts, room, attention_ns[row])
    for step in range(num_steps):
        own, total = amounts[step], 0.0
        num_tokens, num_reqs = own.prefill_tokens + own.num_decodes, own.num_prefills + own.num_decodes
        for source in range(priced_ns.shape[1] - 1):
            part = tables_ns(sheet, source, own, num_tokens, num_reqs)
            for row in range(num_rows):
                if sheet.attention[row].source == source:
                    part += sheet.attention[row].num_runs * attention_ns[row, step]
            priced_ns[step, source] += part
            total += part
        steps_ns[step] = note_total(sheet, own, total, priced_ns[step])


@compiled
def price_steps(sheet: SheetArrays, new: Ints, computed: Ints, num_new_requests: Ints, scratch: Scratch) -> tuple[Ints, Floats]:
    """Return the latencies of steps in nanoseconds, shape (num_steps,), and the parts of each as `price_step` has them.

    Args:
        sheet: The price sheet's arrays; the steps must keep its limits.
        new: Tokens to compute of each request, shape (num_steps, num_reqs); 0 marks a place without a request.
        computed: Tokens in the KV cache of each request, of the same shape.
        num_new_requests: Requests that the engine sees for the first time, shape (num_steps,).
        scratch: What `new_scratch` returned.
    """
    num_steps, priced_ns = len(new), np.zeros((len(new), len(sheet.tokens_ns) + 1))
    steps_ns, amounts, num_prefills = np.empty(num_steps, np.int64), np.zeros(num_steps, AMOUNTS), 0.0
    for step in range(num_steps):
        clear(amounts[step])
        amounts[step].num_new_requests = num_new_requests[step]
        for place in range(new.shape[1]):
            if new[step, place] > 0:
                add_request(amounts[step], new[step, place], computed[step, place])
        num_prefills += amounts[step].num_prefills
    if num_steps < _FEW or num_prefills == 0:  # decodes, as of a run, are looked up where some have answered alike before
        for step in range(num_steps):
            steps_ns[step] = price_step(sheet, amounts[step], scratch, priced_ns[step])
        return steps_ns, priced_ns
    for start in range(0, num_steps, _TILE):
        tile = slice(start, min(start + _TILE, num_steps))
        _price_tile(sheet, amounts[tile], steps_ns[tile], priced_ns[tile])
    return steps_ns, priced_ns
