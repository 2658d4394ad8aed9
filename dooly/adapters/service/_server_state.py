"""From what a gateway sees of a server to the TTFT and TPOT of a request that it would send there.

A gateway knows counts, not requests. So the running requests share the tokens in the cache evenly, the prompts that wait are as
long as the request's own, and nobody leaves before the first token is out. The step under way has run by half when it comes.
Where the engine schedules ahead, the one behind it is scheduled as well. Prompts that come between decodes, and for how long a
full server lets a request wait, are known where somebody says what requests there are in general.
A prompt's chunks are priced at up to 16 of their positions: between them, attention grows evenly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dooly.adapters._pieces import in_pieces
from dooly.adapters._wall import busy_ns, launches_ns
from dooly.adapters.service._timeline import Timeline
from dooly.errors import InvalidInputError, OutOfDomainError
from dooly.predict import BatchArrays

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from threading import Event

    from dooly.predict import LatencyModel
    from dooly.simulation import SchedulerConfig

    _Step = tuple[list[int], list[int], float]
    """Tokens of the prompts in a step, what they have in the cache, and how often the step counts."""

_MAX_CHUNKS = 16
"""Positions of a prompt that are priced at most."""
_UNDER_WAY = 3
"""Decodes after which a busy server goes on as ever."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """What a gateway knows of a server, and of the request that it would send there; names are those of llm-d's predictor."""

    input_token_length: int
    """Tokens of the request's prompt."""
    num_request_running: int
    """Requests that the server decodes."""
    num_request_waiting: int = 0
    """Requests whose prompts wait there."""
    kv_cache_percentage: float = 0.0
    """Share of the KV cache that is in use, from 0 to 1."""
    num_tokens_generated: int = 0
    """Tokens that the request has put out already."""
    prefix_cache_score: float = 0.0
    """Share of the prompt that lies in the cache, from 0 to 1."""
    prefill_tokens_in_flight: int = 0
    """Tokens of waiting prompts, where the gateway knows them; with 0, those prompts are as long as the request's."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """The requests that servers have in general, where somebody knows: how often prompts come between decodes.

    Raises:
        InvalidInputError: A length is below 1, or not finite.
    """

    prompt_tokens: float
    """Mean length of prompts, without what lies in the cache."""
    output_tokens: float
    """Mean length of outputs."""

    def __post_init__(self) -> None:
        if not (1 <= self.prompt_tokens < math.inf and 1 <= self.output_tokens < math.inf):
            given = f"{self.prompt_tokens:g} and {self.output_tokens:g}"
            raise InvalidInputError(f"--mean-prompt-tokens, --mean-output-tokens: {given}; give at least 1, finite")


class ServerLatency(NamedTuple):
    """What a request would see, in seconds."""

    ttft_s: float
    """Time to the first token."""
    tpot_s: float
    """Time of each further token."""
    is_least: bool
    """Whether the first token comes later than this: the server is full, and nobody says for how long."""


class Plan(NamedTuple):
    """The steps that tell a request's latency, and how often each counts in its TTFT; the last one is its decode."""

    new: Sequence[list[int]]
    """Tokens of the prompts in each step, beside the running decodes."""
    computed: Sequence[list[int]]
    """Tokens that each of these has in the cache."""
    weights: Sequence[float]
    """How often each step counts in the TTFT."""
    running: int
    """Decodes in every step."""
    context: int
    """Tokens that each of them has in the cache."""
    ahead: float
    """Share of what those steps take that is of prompts which wait in front of the request's; 0 where none does."""
    wait: float | None
    """Decodes until the request has a seat and room in the cache; None where that is not known."""
    prompts: float
    """Passes of other requests' prompts between two decodes, each of which takes the last step but one; 0 where none is known."""

    def shape(self) -> tuple[int, int]:
        """Return the steps, and the requests in the widest of them."""
        return len(self.new), self.running + max(map(len, self.new))


def server_latencies(
    latency: LatencyModel, config: SchedulerConfig, states: Sequence[ServerState], traffic: Traffic | None = None
) -> list[ServerLatency]:
    """Predict what a request would see at each of some servers.

    Args:
        latency: Prices the steps.
        config: The servers' scheduler settings, as `scheduler_config` returns them.
        states: What is known of each server.
        traffic: The requests that they have in general; without it no prompts come between decodes.

    Raises:
        InvalidInputError: A request is longer than the servers take; see `check_fits`.
        OutOfDomainError: A step exceeds what was measured.
    """
    return plan_latencies(latency, [plan_of(config, state, traffic) for state in states])


def plan_latencies(latency: LatencyModel, plans: Sequence[Plan], given_up: Event | None = None) -> list[ServerLatency]:
    """Predict what plans tell, all or none.

    Raises:
        CancelledError: Nobody waits for it any longer.
        OutOfDomainError: A step exceeds what was measured.
    """
    return [
        found for piece in in_pieces(plans, Plan.shape, given_up=given_up) for found in _told(latency, piece, _batches(piece))
    ]


def each_latency(
    latency: LatencyModel, plans: Sequence[Plan], given_up: Event | None = None
) -> list[ServerLatency | OutOfDomainError]:
    """Predict what plans tell; one of whose steps one exceeds what was measured has the error in its place.

    Raises:
        CancelledError: Nobody waits for it any longer.
    """
    return [found for piece in in_pieces(plans, Plan.shape, given_up=given_up) for found in _each(latency, piece)]


def _each(latency: LatencyModel, plans: Sequence[Plan]) -> list[ServerLatency | OutOfDomainError]:
    batches = _batches(plans)
    starts = np.cumsum([0, *(len(plan.new) for plan in plans[:-1])])
    beyond = np.logical_or.reduceat(latency.domain.outside(batches), starts).tolist()
    if not any(beyond):
        return [*_told(latency, plans, batches)]
    inside = [plan for plan, is_beyond in zip(plans, beyond, strict=True) if not is_beyond]
    told = iter(plan_latencies(latency, inside))
    return [
        OutOfDomainError(latency.domain.refusal(_batches([plan]), latency.traced.model)) if is_beyond else next(told)
        for plan, is_beyond in zip(plans, beyond, strict=True)
    ]


def check_fits(config: SchedulerConfig, state: ServerState) -> None:
    """Refuse a request that is longer than its server takes.

    Raises:
        InvalidInputError: Prompt and output exceed `max_model_len`.
    """
    if (length := state.input_token_length + state.num_tokens_generated + 1) > config.max_model_len:
        raise InvalidInputError(
            f"input_token_length: a request of {length} tokens, the next one included, exceeds the {config.max_model_len} of "
            "--max-model-len; serve with a larger one"
        )


def plan_of(config: SchedulerConfig, state: ServerState, traffic: Traffic | None) -> Plan:
    """Return the steps from a request's arrival to its first token, and the one of its decode.

    Raises:
        InvalidInputError: As `check_fits`.
    """
    check_fits(config, state)
    # A full server takes the request when enough have left: it then runs beside one fewer than there are seats.
    running = min(state.num_request_running, config.num_seats - 1)
    capacity = (config.num_kv_blocks - 1) * config.block_size
    context = min(int(state.kv_cache_percentage * capacity) // max(running, 1), config.max_model_len - 1)
    length = max(state.input_token_length, 1)
    tokens = max(length - int(state.prefix_cache_score * length), 1)
    waiting = state.prefill_tokens_in_flight or tokens * state.num_request_waiting
    wait: float | None = 0.0
    if leaving := _leaving(config, state, waiting + length, traffic):
        wait = None
        if traffic is not None:
            # As many leave a step as decode in it, over the tokens that each puts out.
            wait = leaving * traffic.output_tokens / min(state.num_request_running, config.num_seats)
    room = config.token_budget - running
    fits = min(room // tokens, config.num_seats - running)
    computing = (
        _turns(tokens, length - tokens, waiting, fits) if fits > 0 else _chunks(tokens, length - tokens, waiting, max(room, 1))
    )
    steps, passes = list(computing), 0.0
    if traffic is not None and running:
        # As many prompts come in as requests end, and each decodes once a step until it does.
        chunk = min(math.ceil(traffic.prompt_tokens), max(room, 1))
        steps.append(([chunk], [0], 0.0))
        passes = (running + 1) / traffic.output_tokens * traffic.prompt_tokens / chunk
    steps.append(([1], [state.input_token_length + state.num_tokens_generated], 0.0))
    new, computed, weights = zip(*steps, strict=True)
    return Plan(new, computed, weights, running, context, waiting / (waiting + tokens), wait, passes)


def _leaving(config: SchedulerConfig, state: ServerState, tokens: int, traffic: Traffic | None) -> float:
    """Return how many of the running requests have to leave before those that wait and the request have seats and cache.

    Args:
        config: The scheduler's settings.
        state: The server.
        tokens: Tokens of the prompts that wait, the request's among them.
        traffic: The requests in general; without it one that leaves has as much in the cache as the others.
    """
    running = min(state.num_request_running, config.num_seats)
    if not running:
        return 0.0
    capacity = (config.num_kv_blocks - 1) * config.block_size
    held = capacity * state.kv_cache_percentage / running if traffic is None else traffic.prompt_tokens + traffic.output_tokens
    lacking = tokens - capacity * (1 - state.kv_cache_percentage)
    seats = running + state.num_request_waiting + 1 - config.num_seats
    return max(0.0, float(seats), lacking / max(held, 1.0))


def _turns(tokens: int, cached: int, waiting: int, fits: int) -> Iterator[_Step]:
    """Yield steps of several whole prompts each, and the rest of them, the request's own with the last."""
    whole, rest = divmod(waiting + tokens, fits * tokens)
    for prompts, count in ((fits, whole), (math.ceil(rest / tokens), 1)):
        if prompts and count:
            yield [tokens] * prompts, [cached] * prompts, float(count)


def _chunks(tokens: int, cached: int, waiting: int, chunk: int) -> Iterator[_Step]:
    """Yield some of a prompt's chunks; those that wait take as long a token as the request's own."""
    chunks = math.ceil(tokens / chunk)
    number = min(chunks, _MAX_CHUNKS)
    apart = (chunks - 1) / max(number - 1, 1)
    places = [round(place * apart) for place in range(number)]
    for index in places:
        done = index * chunk
        yield [min(chunk, tokens - done)], [cached + done], chunks / len(places) * (waiting + tokens) / tokens


def _batches(plans: Sequence[Plan]) -> BatchArrays:
    """Return the steps of plans, a step a row: the running decodes first, then the prompts."""
    rows = sum(len(plan.new) for plan in plans)
    width = max(plan.shape()[1] for plan in plans)
    new, computed = np.zeros((rows, width), dtype=np.int64), np.zeros((rows, width), dtype=np.int64)
    fresh, row = [], 0
    for plan in plans:
        running, below = plan.running, row + len(plan.new)
        new[row:below, :running] = 1
        computed[row:below, :running] = plan.context
        for prompts, cached in zip(plan.new, plan.computed, strict=True):
            if len(prompts) == 1:  # as of nearly all steps: a number takes less than a list of one
                new[row, running], computed[row, running] = prompts[0], cached[0]
            else:
                own = slice(running, running + len(prompts))
                new[row, own], computed[row, own] = prompts, cached
            fresh.append(cached.count(0))
            row += 1
    return BatchArrays(new, computed, np.array(fresh, dtype=np.int64))


def _told(latency: LatencyModel, plans: Sequence[Plan], batches: BatchArrays) -> Iterator[ServerLatency]:
    """Yield what each plan's steps, laid one behind the other, tell of its request."""
    device_ns, launch_ns = latency.steps_ns(batches), launches_ns(latency, batches)
    walls_ns = busy_ns(latency, device_ns, launch_ns).tolist()
    steps = list(zip(device_ns.tolist(), launch_ns.tolist(), batches.num_tokens.tolist(), strict=True))
    stop = 0
    for plan in plans:
        start, stop = stop, stop + len(plan.new)
        decode = steps[stop - 1]
        tpot_ns = _with_prompts(plan, walls_ns[start:stop])
        line, arrival_ns = Timeline(latency), 0.0
        if plan.running:
            for _ in range(_UNDER_WAY):
                line.run(*decode)
            # Of prompts that wait, the first are in the steps that are under way and scheduled: what these take is told by them.
            arrival_ns = line.now_ns + (0.5 if plan.ahead and latency.schedules_ahead else -0.5) * walls_ns[stop - 1]
        begin_ns = line.now_ns
        for step, times in zip(steps[start:stop], plan.weights, strict=True):
            if times:
                line.run(*step, times)
        # Prompts in front are computed while the request waits for a seat: what takes longer counts.
        waits_ns = max(0.0, (plan.wait or 0.0) * tpot_ns - plan.ahead * (line.now_ns - begin_ns))
        ttft_ns = line.first_token(*decode) - arrival_ns + waits_ns
        yield ServerLatency(ttft_ns / 1e9, tpot_ns / 1e9, plan.wait is None)


def _with_prompts(plan: Plan, steps_ns: Sequence[int]) -> float:
    """Return what a decode of a plan takes with the prompts that come before it, by what each of the plan's steps takes."""
    return steps_ns[-1] + plan.prompts * (steps_ns[-2] - steps_ns[-1])
