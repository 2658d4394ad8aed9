"""Requests, workloads and synthetic ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dooly.errors import WorkloadError
from dooly.simulation import LengthRange, Request, Workload, generate_workload

LENGTHS = LengthRange(10, 20)


def test_poisson_arrivals_have_the_rate_and_spread_asked_for() -> None:
    """20,000 gaps at 4/s have mean and standard deviation 0.25 s, the first request arriving at 0."""
    served = generate_workload(20_000, 4.0, LENGTHS, LENGTHS, seed=1)
    arrivals_s = np.array([r.arrival_ns for r in served.requests]) / 1e9
    gaps_s = np.diff(arrivals_s)
    assert arrivals_s[0] == 0
    assert gaps_s.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps_s.std() == pytest.approx(0.25, rel=0.03)


def test_gamma_arrivals_have_the_variation_asked_for() -> None:
    """With cv 3 the gaps' standard deviation is three times their mean."""
    served = generate_workload(50_000, 4.0, LENGTHS, LENGTHS, seed=1, cv=3.0)
    gaps_s = np.diff([r.arrival_ns for r in served.requests]) / 1e9
    assert gaps_s.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(3.0, rel=0.05)


def test_infinite_rate_sends_everything_at_once() -> None:
    """All requests arrive at 0."""
    assert {r.arrival_ns for r in generate_workload(50, math.inf, LENGTHS, LENGTHS).requests} == {0}


def test_lengths_cover_the_range_with_both_ends() -> None:
    """1,000 draws of 11 values meet each of them and nothing else."""
    served = generate_workload(1000, 1.0, LENGTHS, LengthRange(7, 7))
    assert {r.num_prompt_tokens for r in served.requests} == set(range(10, 21))
    assert {r.num_output_tokens for r in served.requests} == {7}


def test_seed_decides_the_workload_and_rate_leaves_lengths() -> None:
    """One seed gives one workload; another rate moves arrivals only; another seed changes lengths."""
    first = generate_workload(50, 1.0, LENGTHS, LENGTHS, seed=3)
    assert first == generate_workload(50, 1.0, LENGTHS, LENGTHS, seed=3)
    faster = generate_workload(50, 2.0, LENGTHS, LENGTHS, seed=3)
    assert [r.num_prompt_tokens for r in first.requests] == [r.num_prompt_tokens for r in faster.requests]
    assert first.requests[-1].arrival_ns == pytest.approx(2 * faster.requests[-1].arrival_ns, abs=100)
    other = generate_workload(50, 1.0, LENGTHS, LENGTHS, seed=4)
    assert [r.num_prompt_tokens for r in first.requests] != [r.num_prompt_tokens for r in other.requests]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"rate": 0.0}, "rate must be"),
        ({"rate": math.nan}, "rate must be"),
        ({"cv": -1.0}, "cv must be"),
        ({"num_requests": 0}, "requests must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_generator_refuses_numbers_out_of_range(arguments: dict[str, Any], rule: str) -> None:
    """Each argument's rule is named."""
    with pytest.raises(WorkloadError, match=rule):
        generate_workload(**{"num_requests": 5, "rate": 1.0, "prompt": LENGTHS, "output": LENGTHS, **arguments})


@pytest.mark.parametrize(
    ("requests", "rule"),
    [
        ((), "at least one"),
        ((Request(0, 5, 1, 1), Request(1, 4, 1, 1)), "request 1 arrives before"),
        ((Request(0, 5, 1, 1), Request(0, 6, 1, 1)), "request_id 0 occurs twice"),
    ],
)
def test_workload_refuses_disorder(requests: tuple[Request, ...], rule: str) -> None:
    """A workload is not empty, sorted and free of double ids."""
    with pytest.raises(WorkloadError, match=rule):
        Workload(requests, "test")


@pytest.mark.parametrize("values", [(0, -1, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0)])
def test_request_refuses_impossible_numbers(values: tuple[int, int, int, int]) -> None:
    """Arrivals before 0 and requests without tokens are refused."""
    with pytest.raises(WorkloadError, match="request 0"):
        Request(*values)


def test_length_range_refuses_an_empty_range() -> None:
    """The low end must not exceed the high end."""
    with pytest.raises(WorkloadError, match="1 <= low <= high"):
        LengthRange(5, 4)
