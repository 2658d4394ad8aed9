"""The event loop of one engine, compiled: clock, arrivals, launches and what they bring. Import it where it is called.

Records are read and written through their arrays each time: by a name for one, the loop is half as slow again.
"""
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN202 - numba infers the types

from __future__ import annotations

from dooly.prices._compiled import add_position, compiled, is_within, part, price_step
from dooly.simulation._compiled_blocks import blocks_for, release, take
from dooly.simulation._compiled_scheduler import num_waiting, schedule
from dooly.simulation._compiled_state import GAPS

DONE, FULL, REFUSED = range(3)
"""Why the loop came back: all requests have finished, gaps are to be counted, or a step is beyond what can be priced."""
_TOKEN, _FIRST, _LAST = 1, 2, 4
"""What a step brings a request: a token, the first, the last."""


@part
def _note_gap(state, gap_ns, count):
    """Note that so many requests got a token so long after the one before."""
    last = state.engine.num_gaps - 1
    if last >= 0 and state.gaps[last].gap_ns == gap_ns:
        state.gaps[last].count += count
        return
    state.gaps[last + 1].gap_ns, state.gaps[last + 1].count = gap_ns, count
    state.engine.num_gaps += 1


@part
def _note_token(state, request, now_ns):
    """Note that a request got a token."""
    if state.requests[request].token_ns >= 0:
        _note_gap(state, now_ns - state.requests[request].token_ns, 1)
    state.requests[request].token_ns = now_ns


@part
def _finish(state, settings, request, now_ns):
    """Let go of a request that has ended; in a closed loop, its user sends the next one."""
    engine = state.engine
    state.requests[request].finish_ns = now_ns
    release(state, settings, request, state.requests[request].total - 1)
    if settings.is_closed and engine.num_sent < len(state.requests):
        state.requests[engine.num_sent].arrival_ns = now_ns
        engine.num_sent += 1
    if state.requests[request].computed == 0:  # it was preempted while its last token was under way
        left = 0
        for place in range(engine.num_preempted):
            if state.places[place].preempted != request:
                state.places[left].preempted = state.places[place].preempted
                left += 1
        engine.num_preempted = left


@part
def _retire(state, settings, now_ns):
    """Note what the step under way has brought about."""
    engine, has_ended = state.engine, False
    for place in range(engine.num_under_way):
        request, brings = state.places[place].under_way, state.places[place].brings
        if brings & _TOKEN:
            _note_token(state, request, now_ns)
        if brings & _FIRST:
            state.requests[request].first_token_ns = now_ns
        if brings & _LAST:
            _finish(state, settings, request, now_ns)
            has_ended = True
    engine.num_steps_under_way = engine.num_under_way = 0
    if has_ended:
        left = 0
        for place in range(engine.num_running):
            request = state.places[place].running
            if state.requests[request].finish_ns < 0:
                state.places[left].running = request
                left += 1
        engine.num_running = left


@part
def _advance(state, settings, num_steps, has_behind):
    """Take the step's tokens for granted, done so often; what the last brings about is under way."""
    engine = state.engine
    engine.num_launches += 1
    engine.has_behind, engine.num_latest, engine.num_steps_under_way = has_behind, num_steps, 1
    for place in range(engine.num_scheduled):
        request = state.places[place].scheduled
        computed = state.requests[request].computed + state.places[place].granted + num_steps - 1
        known = state.requests[request].known + num_steps - 1
        if num_steps > 1:
            lacking = blocks_for(computed, settings) - state.requests[request].held
            state.requests[request].held += lacking
            take(state, lacking)
        state.requests[request].computed = computed
        brings = 0
        if computed == known:  # a step that computes all known tokens of a request generates its next one
            brings = _TOKEN | (_FIRST if known == state.requests[request].prompt else 0)
            known += 1
            brings |= _LAST if known == state.requests[request].total else 0
            state.requests[request].previous_launch = state.requests[request].last_launch
            state.requests[request].last_launch = engine.num_launches
        state.requests[request].known = known
        state.places[place].under_way, state.places[place].brings = request, brings
    engine.num_under_way = engine.num_scheduled
    engine.num_steps += num_steps


@part
def _launch_ns(state, settings):
    """Return what launching the step takes, as `HostTimes.launch_ns` says."""
    amounts = state.amounts
    if amounts.prefill_tokens + amounts.num_decodes > settings.max_captured_tokens:
        return settings.plain_ns
    return settings.whole_ns if amounts.num_prefills == 0 else settings.pieces_ns


@part
def _capped_ns(state, settings, start_ns, price_ns):
    """Return what a step takes under the device's power limit, as `PowerCap.capped_ns` says."""
    engine, amounts = state.engine, state.amounts
    num_tokens = min(int(amounts.prefill_tokens + amounts.num_decodes), len(state.products_ns) - 1)
    products_ns = min(price_ns, state.products_ns[num_tokens])
    if products_ns == 0:
        return price_ns
    pause_ns = max(0, start_ns - engine.ran_ns)
    spent_ns = max(0, engine.spent_ns - pause_ns - (price_ns - products_ns)) + products_ns
    capped_ns = price_ns + max(0, spent_ns - settings.burst_ns) * settings.slowdown_permille // 1000
    engine.spent_ns, engine.ran_ns = min(spent_ns, settings.burst_ns), start_ns + capped_ns
    engine.power_limit_ns += capped_ns - price_ns
    return capped_ns


@part
def _next_arrival_ns(state):
    """Return when the next arrival disturbs a run of decodes; -1 where none does.

    Behind a request that cannot be admitted, an arrival changes nothing.
    """
    engine = state.engine
    if num_waiting(state) > 0 or engine.num_arrived == engine.num_sent:
        return -1
    return state.requests[engine.num_arrived].arrival_ns


@part
def _run(state, settings, sheet, max_num_steps):
    """Launch a step, or repetitions of it as long as no arrival disturbs them, behind what the device is at.

    Returns how many; when the host has launched the first; and when the first and the last but one are known to have run.
    """
    engine, launch_ns, next_ns = state.engine, _launch_ns(state, settings), _next_arrival_ns(state)
    now_ns, step = engine.now_ns, 0
    free_ns = engine.end_ns if engine.num_under_way > 0 else now_ns
    launched_ns = first_ns = last_ns = now_ns
    while step < max_num_steps:
        is_disturbed = 0 <= next_ns <= now_ns or engine.num_gaps >= GAPS or not is_within(sheet, state.amounts)
        if step > 0 and is_disturbed:
            break
        price_ns = price_step(sheet, state.amounts, state.scratch, state.priced_ns)
        start_ns = max(free_ns, now_ns + settings.prepare_ns)
        price_ns = _capped_ns(state, settings, start_ns, price_ns)
        end_ns = max(start_ns + price_ns, now_ns + launch_ns)
        engine.host_wait_ns += end_ns - max(free_ns, now_ns) - price_ns
        # The step before is known to have run when this one is scheduled or, ahead of that, the one behind it.
        before_ns, now_ns = now_ns, max(now_ns + launch_ns, free_ns) if settings.async_scheduling else end_ns
        known_ns, free_ns = now_ns if settings.async_scheduling else before_ns, end_ns
        if step == 0:
            launched_ns = now_ns
        elif step == 1:
            first_ns = known_ns
        else:
            _note_gap(state, known_ns - last_ns, engine.num_scheduled)
        last_ns = known_ns
        add_position(state.amounts)
        step += 1
    engine.now_ns, engine.end_ns = now_ns, free_ns
    return step, launched_ns, first_ns, last_ns


@part
def _launch(state, settings, sheet, max_num_steps):
    """Put a step under way, or as many repetitions of it as no arrival disturbs."""
    engine = state.engine
    num_steps, launched_ns, first_ns, last_ns = _run(state, settings, sheet, max_num_steps)
    has_behind = engine.num_under_way > 0
    if has_behind:
        _retire(state, settings, launched_ns)
    _advance(state, settings, num_steps, has_behind)
    if num_steps > 1:
        for place in range(engine.num_scheduled):
            request = state.places[place].scheduled
            _note_token(state, request, first_ns)
            state.requests[request].token_ns = last_ns


@compiled
def serve(state, settings, sheet):
    """Run until every request has finished, or something else is to be done first; return which."""
    engine = state.engine
    while engine.num_gaps < GAPS:
        if engine.num_under_way > 0 and (engine.num_scheduled == 0 or not settings.async_scheduling):
            engine.now_ns = max(engine.now_ns, engine.end_ns)
            _retire(state, settings, engine.now_ns)
        while engine.num_arrived < engine.num_sent and state.requests[engine.num_arrived].arrival_ns <= engine.now_ns:
            engine.num_arrived += 1
        if engine.num_running == 0 and num_waiting(state) == 0:
            if engine.num_arrived == engine.num_sent:
                return DONE
            engine.now_ns = state.requests[engine.num_arrived].arrival_ns
            continue
        max_num_steps = schedule(state, settings)
        if engine.num_scheduled > 0 and is_within(sheet, state.amounts):
            _launch(state, settings, sheet, max_num_steps)
        elif engine.num_scheduled > 0 or engine.num_under_way == 0:
            return REFUSED
    return FULL
