"""Continuous batching as `Scheduler` does it, first come first served, for the compiled loop. Import it where it is called."""
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN202 - numba infers the types

from __future__ import annotations

from dooly.prices._compiled import add_request, clear, part
from dooly.simulation._compiled_blocks import blocks_for, forget, release, steps_within, take


@part
def num_waiting(state):
    """Return how many requests wait."""
    return state.engine.num_preempted + state.engine.num_arrived - state.engine.num_admitted


@part
def _holds_unknown_input(state, request):
    """Tell what `UnderWay.holds_input_of` does."""
    engine = state.engine
    if engine.num_steps_under_way == 0 or state.requests[request].last_launch != engine.num_launches:
        return False
    is_behind = engine.has_behind > 0 and state.requests[request].previous_launch == engine.num_launches - 1
    return engine.num_latest > 1 or is_behind


@part
def _preempt_last(state, settings):
    """Let the running request that was admitted last start over, but for blocks that it finds again."""
    engine = state.engine
    engine.num_running -= 1
    victim = state.places[engine.num_running].running
    release(state, settings, victim, state.requests[victim].computed - _holds_unknown_input(state, victim))
    state.requests[victim].computed = 0
    state.places[engine.num_preempted].preempted = victim
    engine.num_preempted += 1
    engine.num_preemptions += 1


@part
def _serve_running(state, settings, chunk_limit):
    """Grant tokens and blocks to the running requests, the last of which give way while blocks lack.

    Returns the tokens left of the budget, and the most that one of the requests lacked.
    """
    engine, budget, most, place = state.engine, settings.max_num_batched_tokens, 0, 0
    while place < engine.num_running:
        request = state.places[place].running
        computed, known = state.requests[request].computed, state.requests[request].known
        wanted = known - computed if known < state.requests[request].total else 0
        most = max(most, wanted)
        count = min(wanted, chunk_limit, budget)
        needed = blocks_for(computed + count, settings)
        lacking = needed - state.requests[request].held
        while lacking > engine.num_free and place < engine.num_running:
            _preempt_last(state, settings)
        if place == engine.num_running:
            break
        if lacking > 0:
            state.requests[request].held = needed
            take(state, lacking)
        state.places[place].granted = count
        budget -= count
        place += 1
    return budget, most


@part
def _reserve(state, settings, request, end):
    """Give a request blocks for its tokens up to `end`, if there is room, and say whether."""
    engine = state.engine
    num_room = state.requests[request].known if settings.scheduler_reserve_full_isl else end
    num_spare = settings.watermark_blocks if engine.num_running > 0 else 0
    if blocks_for(num_room, settings) + num_spare > engine.num_free:
        return False
    state.requests[request].held = blocks_for(end, settings)
    forget(state, request)
    take(state, state.requests[request].held)
    return True


@part
def _admit(state, settings, budget, chunk_limit):
    """Take requests off the waiting queue while the budget, the slots and the blocks last."""
    engine, size = state.engine, settings.block_size
    while budget > 0 and num_waiting(state) > 0 and engine.num_running < settings.max_num_seqs:
        is_new = engine.num_preempted == 0
        request = engine.num_admitted if is_new else state.places[engine.num_preempted - 1].preempted
        num_tokens = state.requests[request].known
        num_cached = min(state.requests[request].kept, (num_tokens - 1) // size) * size
        count = min(num_tokens - num_cached, chunk_limit)
        if not settings.enable_chunked_prefill and count > budget:
            return
        count = min(count, budget)
        if not _reserve(state, settings, request, num_cached + count):
            return
        state.requests[request].computed = num_cached
        state.places[engine.num_running].running = request
        state.places[engine.num_running].granted = count
        engine.num_running += 1
        budget -= count
        if is_new:
            engine.num_admitted += 1
            state.requests[request].scheduled_ns = engine.now_ns
            state.amounts.num_new_requests += 1
        else:
            engine.num_preempted -= 1


@part
def _fill_step(state):
    """Gather the requests that are granted tokens; return whether all running ones decode."""
    engine, is_run, number = state.engine, True, 0
    for place in range(engine.num_running):
        request, count = state.places[place].running, state.places[place].granted
        if count == 0:
            is_run = False
            continue
        computed = state.requests[request].computed
        is_run = is_run and computed >= state.requests[request].prompt
        add_request(state.amounts, count, computed)
        state.places[number].scheduled = request
        state.places[number].granted = count
        number += 1
    engine.num_scheduled = number
    return is_run


@part
def schedule(state, settings):
    """Decide the next step and reserve its blocks; return how often it can be repeated, unless a request arrives."""
    engine = state.engine
    clear(state.amounts)
    chunk_limit = settings.long_prefill_token_threshold if engine.num_running + num_waiting(state) > 1 else 0
    chunk_limit = chunk_limit if chunk_limit > 0 else settings.max_model_len
    num_preemptions = engine.num_preemptions
    budget, most = _serve_running(state, settings, chunk_limit)
    may_run = engine.num_preemptions == num_preemptions
    if may_run:
        num_running = engine.num_running
        _admit(state, settings, budget, chunk_limit)
        may_run = engine.num_running == num_running and most == 1
    if not _fill_step(state) or not may_run:
        return 1
    num_reqs, num_left = engine.num_scheduled, settings.max_model_len
    for place in range(num_reqs):
        request = state.places[place].scheduled
        num_left = min(num_left, state.requests[request].total - state.requests[request].known)
    return 1 + steps_within(state, settings, num_reqs, num_left - 1)
