"""Generators of synthetic workloads: lengths and arrivals drawn at random, by the arguments and the seed alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import WorkloadError
from dooly.simulation._arrivals import draw_arrivals_ns
from dooly.simulation._columns import Columns, as_column
from dooly.simulation._workload import NS_PER_S, Request, Turn, Workload

if TYPE_CHECKING:
    from dooly.simulation._lengths import LengthRange, Lengths


def generate_workload(  # noqa: PLR0913 -- the axes of a synthetic workload
    num_requests: int,
    rate: float,
    prompt: Lengths,
    output: Lengths,
    *,
    seed: int = 0,
    cv: float = 1.0,
    prefix: int = 0,
    num_prefixes: int = 1,
) -> Workload:
    """Generate requests of random lengths that arrive at random.

    Lengths are drawn before arrivals, so one seed gives the same requests at every rate, and with every prefix.

    Args:
        num_requests: How many, at least 1.
        rate: Mean requests per second; infinite sends everything at once.
        prompt: Prompt tokens, each request's own.
        output: Generated tokens.
        seed: Of NumPy's default generator.
        cv: Coefficient of variation of the gaps between arrivals; 1 makes a Poisson process, 0 a steady beat.
        prefix: Tokens ahead of these that prompts share.
        num_prefixes: How many such prefixes there are; each request begins with one of them, drawn uniformly.

    Raises:
        WorkloadError: A number is out of range.
    """
    if prefix < 0 or num_prefixes < 1:
        raise WorkloadError(f"prefix must be at least 0 tokens, and prefixes at least 1, got {prefix} and {num_prefixes}")
    if num_requests < 1:
        raise WorkloadError(f"requests must be at least 1, got {num_requests}")
    if seed < 0:
        raise WorkloadError(f"seed must be at least 0, got {seed}")
    rng = np.random.default_rng(seed)
    prompts, outputs = prompt.draw(rng, num_requests), output.draw(rng, num_requests)
    arrivals_ns = draw_arrivals_ns(num_requests, rate, cv, rng)
    columns = {"request_id": np.arange(num_requests), "arrival_ns": arrivals_ns, "num_prompt_tokens": prompts + prefix}
    requests = Columns(Request, **columns, num_output_tokens=outputs)
    if prefix:
        ids = np.random.default_rng((seed, 1)).integers(num_prefixes, size=num_requests).tolist()
        sizes = np.full(num_requests, prefix)
        requests = requests.replaced(prefix_ids=as_column([(prefix_id,) for prefix_id in ids]), prefix_block_size=sizes)
    description = (
        f"{num_requests} requests at {rate:g}/s (cv {cv:g}), prompt {prompt}, output {output}"
        f"{f', behind {num_prefixes} prefixes of {prefix}' if prefix else ''}"
    )
    return Workload(requests, f"{description}, seed {seed}")


def add_turns(  # noqa: PLR0913, PLR0917 -- the axes of a synthetic conversation
    first: Workload, turns: LengthRange, think_s: float, prompt: Lengths, output: Lengths, seed: int = 0
) -> Workload:
    """Make each request the first turn of a conversation, and add the turns that follow it.

    Args:
        first: The first turns.
        turns: Turns of a conversation, the first among them.
        think_s: Seconds between the end of a turn and the next, at least 0.
        prompt: Prompt tokens of each later turn, beside the conversation before it.
        output: Tokens that it generates.
        seed: Of NumPy's default generator.

    Raises:
        WorkloadError: `think_s` is negative, or the workload a closed loop.
    """
    rng = np.random.default_rng((seed, 2))
    numbers = turns.draw(rng, len(first.requests)).tolist()
    num_later = sum(numbers) - len(numbers)
    later = zip(prompt.draw(rng, num_later).tolist(), output.draw(rng, num_later).tolist(), strict=True)
    requests: list[Request] = []
    for conversation, (opening, number) in enumerate(zip(first.requests, numbers, strict=True)):
        requests.append(replace(opening, request_id=len(requests), turn=Turn(conversation)))
        for _ in range(number - 1):
            before, (own, generated) = requests[-1], next(later)
            turn = Turn(conversation, before.request_id, round(think_s * NS_PER_S))
            length = before.num_prompt_tokens + before.num_output_tokens + own
            ahead = before.prefix_ids, before.prefix_block_size
            requests.append(Request(len(requests), before.arrival_ns, length, generated, *ahead, turn=turn))
    description = f"{first.description}, {turns} turns with {think_s:g} s between"
    return replace(first, requests=tuple(requests), description=description)
