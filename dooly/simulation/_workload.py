"""Requests and when they arrive: the simulator's input, and generators of synthetic ones.

Arrivals are integer nanoseconds from the workload's start. Generated workloads depend on their arguments and seed only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dooly.errors import WorkloadError

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it arrives, how long its prompt is and how many tokens it asks for."""

    request_id: int
    """Unique within a workload."""
    arrival_ns: int
    """Nanoseconds from the workload's start, at least 0."""
    num_prompt_tokens: int
    """At least 1."""
    num_output_tokens: int
    """Tokens generated, no more and no fewer; at least 1."""
    prefix_ids: tuple[int, ...] = ()
    """What the prompt begins with, an id for each `prefix_block_size` tokens: prompts whose ids begin alike begin with the same
    tokens. What lies behind is the request's own. An id may reach beyond the prompt's end."""
    prefix_block_size: int = 512
    """Tokens that an id stands for; Mooncake's traces have 512."""
    priority: int = 0
    """Where the scheduler's policy is `priority`: lower is served first, and preempted last."""

    def __post_init__(self) -> None:
        if self.arrival_ns < 0:
            raise WorkloadError(f"request {self.request_id}: arrival_ns must be at least 0, got {self.arrival_ns}")
        if self.num_prompt_tokens < 1 or self.num_output_tokens < 1:
            raise WorkloadError(
                f"request {self.request_id}: num_prompt_tokens and num_output_tokens must be at least 1, "
                f"got {self.num_prompt_tokens} and {self.num_output_tokens}"
            )
        if self.prefix_block_size < 1:
            raise WorkloadError(f"request {self.request_id}: prefix_block_size must be at least 1, got {self.prefix_block_size}")


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests sorted by arrival; those of one instant are served in this order."""

    requests: tuple[Request, ...]
    """At least one, sorted by `arrival_ns`, with distinct `request_id`."""
    description: str
    """Where the requests come from, for reports."""
    concurrency: int | None = None
    """In a closed loop, how many users there are: each sends the next request when its last one has ended, so that arrivals
    follow from what the engine does. None where requests arrive at their own times."""
    notes: tuple[str, ...] = ()
    """What a reader should know of how the requests were read, such as failed ones that were left out."""

    def __post_init__(self) -> None:
        if self.concurrency is not None and (self.concurrency < 1 or any(r.arrival_ns for r in self.requests)):
            raise WorkloadError(
                f"{self.description}: a closed loop needs a concurrency of at least 1, got {self.concurrency}, and requests that "
                "arrive at 0"
            )
        if not self.requests:
            raise WorkloadError(f"{self.description}: no request; a workload needs at least one")
        seen: set[int] = set()
        previous_ns = 0
        for request in self.requests:
            if request.arrival_ns < previous_ns:
                raise WorkloadError(
                    f"{self.description}: request {request.request_id} arrives before the one ahead of it; sort by arrival_ns"
                )
            if request.request_id in seen:
                raise WorkloadError(f"{self.description}: request_id {request.request_id} occurs twice; make it unique")
            previous_ns = request.arrival_ns
            seen.add(request.request_id)


@dataclass(frozen=True, slots=True)
class LengthRange:
    """Token counts drawn uniformly from `low` to `high`, both included."""

    low: int
    """Smallest count, at least 1."""
    high: int
    """Largest count, at least `low`."""

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise WorkloadError(f"length range {self.low}-{self.high}: must be 1 <= low <= high")


def draw_arrivals_ns(num_requests: int, rate: float, cv: float, rng: np.random.Generator) -> list[int]:
    """Draw arrival times with gamma-distributed gaps; the first request arrives at 0.

    Args:
        num_requests: How many.
        rate: Mean requests per second; infinite sends everything at once.
        cv: Coefficient of variation of the gaps; 1 makes a Poisson process, more makes bursts.
        rng: Source of randomness.

    Returns:
        Nanoseconds, ascending.

    Raises:
        WorkloadError: `rate` or `cv` is not positive.
    """
    if not rate > 0:
        raise WorkloadError(f"rate must be a positive number of requests per second or inf, got {rate}")
    if not 0 < cv < math.inf:
        raise WorkloadError(f"cv must be a positive finite number, got {cv}")
    if math.isinf(rate):
        return [0] * num_requests
    gaps_s = rng.gamma(shape=cv**-2, scale=cv**2 / rate, size=num_requests)
    gaps_s[0] = 0.0
    arrivals: list[int] = np.rint(np.cumsum(gaps_s) * NS_PER_S).astype(np.int64).tolist()
    return arrivals


def generate_workload(  # noqa: PLR0913 -- the axes of a synthetic workload
    num_requests: int,
    rate: float,
    prompt: LengthRange,
    output: LengthRange,
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
        cv: Coefficient of variation of the gaps between arrivals; 1 makes a Poisson process.
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
    prompts = rng.integers(prompt.low, prompt.high, size=num_requests, endpoint=True).tolist()
    outputs = rng.integers(output.low, output.high, size=num_requests, endpoint=True).tolist()
    arrivals = draw_arrivals_ns(num_requests, rate, cv, rng)
    rows = enumerate(zip(arrivals, prompts, outputs, strict=True))
    if prefix:
        ids = np.random.default_rng((seed, 1)).integers(num_prefixes, size=num_requests).tolist()
        requests = tuple(
            Request(index, arrival, prefix + own, generated, (ids[index],), prefix) for index, (arrival, own, generated) in rows
        )
    else:
        requests = tuple(Request(index, *row) for index, row in rows)
    description = (
        f"{num_requests} requests at {rate:g}/s (cv {cv:g}), prompt {prompt.low}-{prompt.high}, output {output.low}-{output.high}"
        f"{f', behind {num_prefixes} prefixes of {prefix}' if prefix else ''}"
    )
    return Workload(requests, f"{description}, seed {seed}")
