"""A KV cache by counts, as `CountedKVCache` has it, for the compiled loop. Import it where it is called."""
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN202 - numba infers the types

from __future__ import annotations

from dooly.prices._compiled import part


@part
def blocks_for(num_tokens, settings):
    """Return how many blocks so many tokens fill."""
    return -(-num_tokens // settings.block_size)


@part
def forget(state, request):
    """Take a request out of those whose free blocks can be found again."""
    engine, older, newer = state.engine, state.requests[request].older, state.requests[request].newer
    if state.requests[request].kept == 0:
        return
    engine.num_kept -= state.requests[request].kept
    state.requests[request].kept = 0
    if older < 0:
        engine.oldest = newer
    else:
        state.requests[older].newer = newer
    if newer < 0:
        engine.newest = older
    else:
        state.requests[newer].older = older


@part
def take(state, number):
    """Take so many free blocks, those that hold nothing first."""
    engine = state.engine
    engine.num_free -= number
    while engine.num_kept > engine.num_free:
        request = engine.oldest
        over = engine.num_kept - engine.num_free
        if state.requests[request].kept <= over:
            forget(state, request)
        else:
            state.requests[request].kept -= over
            engine.num_kept -= over


@part
def release(state, settings, request, num_final):
    """Free all blocks of a request; those that so many final tokens fill can be found again."""
    engine, held = state.engine, state.requests[request].held
    state.requests[request].held = 0
    engine.num_free += held
    num_kept = min(held, num_final // settings.block_size)
    if settings.enable_prefix_caching and num_kept > 0:
        state.requests[request].kept = num_kept
        engine.num_kept += num_kept
        newest = engine.newest
        state.requests[request].older, state.requests[request].newer = newest, -1
        if newest < 0:
            engine.oldest = request
        else:
            state.requests[newest].newer = request
        engine.newest = request


@part
def steps_within(state, settings, num_reqs, limit):
    """Return how many more decode steps of the step's requests the free blocks last, up to a limit."""
    free = state.engine.num_free
    if num_reqs * blocks_for(limit, settings) <= free:
        return limit
    low, high = 0, limit + 1
    while high - low > 1:
        middle, lacking = (low + high) // 2, 0
        for place in range(num_reqs):
            computed = state.requests[state.places[place].scheduled].computed + 1
            lacking += blocks_for(computed + middle, settings) - blocks_for(computed, settings)
        if lacking <= free:
            low = middle
        else:
            high = middle
    return low
