"""The command line's `--workload SPEC|FILE`."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dooly.errors import WorkloadError
from dooly.simulation import LengthRange, Request, Turn, generate_workload, parse_workload

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Write a small Azure trace."""
    path = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:17:0{i}.0000000,{100 * (i + 1)},{i + 1}" for i in range(5)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    return path


def test_poisson_and_gamma_specifications() -> None:
    """A specification is the generator's call; a single number is a range of one."""
    prompt, output = LengthRange(512, 512), LengthRange(64, 256)
    poisson = parse_workload("poisson:rate=2,requests=10,prompt=512,output=64-256,seed=5")
    assert poisson == generate_workload(10, 2.0, prompt, output, seed=5)
    gamma = parse_workload("gamma:rate=2,requests=10,prompt=512,output=64-256,cv=3")
    assert gamma == generate_workload(10, 2.0, prompt, output, cv=3.0)


def test_infinite_rate() -> None:
    """`rate=inf` sends everything at once."""
    assert {r.arrival_ns for r in parse_workload("poisson:rate=inf,requests=9,prompt=1,output=1").requests} == {0}


def test_prompts_may_share_prefixes() -> None:
    """Shared tokens are ahead of each prompt's own, and change neither lengths nor arrivals otherwise."""
    plain = parse_workload("poisson:rate=2,requests=40,prompt=5-9,output=3").requests
    one = parse_workload("poisson:rate=2,requests=40,prompt=5-9,output=3,prefix=100").requests
    assert [(r.arrival_ns, r.num_prompt_tokens - 100) for r in one] == [(r.arrival_ns, r.num_prompt_tokens) for r in plain]
    assert {(r.prefix_ids, r.prefix_block_size) for r in one} == {((0,), 100)}
    several = parse_workload("closed:concurrency=4,requests=40,prompt=5-9,output=3,prefix=100,prefixes=4").requests
    assert {r.prefix_ids for r in several} == {(0,), (1,), (2,), (3,)}


def test_azure_with_its_own_arrivals(trace: Path) -> None:
    """Without a rate the trace's arrivals stay; rows above max_tokens in all are left out."""
    served = parse_workload(f"azure:path={trace},requests=2,max_tokens=303")
    assert served.requests == (Request(0, 0, 100, 1), Request(1, 1_000_000_000, 200, 2))


def test_azure_with_poisson_arrivals(trace: Path) -> None:
    """With a rate, lengths come in the trace's order and arrivals from the seed."""
    served = parse_workload(f"azure:path={trace},rate=1.5,seed=2")
    assert [r.num_prompt_tokens for r in served.requests] == [100, 200, 300, 400, 500]
    assert served.requests[1].arrival_ns != 1_000_000_000
    assert served == parse_workload(f"azure:path={trace},rate=1.5,seed=2")
    assert served.requests != parse_workload(f"azure:path={trace},rate=1.5,seed=3").requests


def test_a_slice_of_a_trace_faster_than_it_was(trace: Path) -> None:
    """Requests from one second up to another, from there on in time; the first so many of those; at twice the rate."""
    served = parse_workload(f"trace:path={trace},start=1,end=4,speed=2")
    assert [(r.request_id, r.arrival_ns / 1e9) for r in served.requests] == [(1, 0), (2, 0.5), (3, 1)]
    first = parse_workload(f"trace:path={trace},start=1.5,requests=2").requests
    assert [(r.request_id, r.arrival_ns / 1e9) for r in first] == [(2, 0.5), (3, 1.5)]


def test_path_is_read_as_a_file(trace: Path) -> None:
    """A text that is no specification is a path."""
    assert len(parse_workload(str(trace)).requests) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "poisson:rate=1,requests=2,prompt=3,output=4,speed=5",
            "unknown key 'speed'; poisson knows rate, prompt, output, requests, seed, prefix, prefixes",
        ),
        ("poisson:rate=1,requests=2,prompt=3,output=4,cv=5", "unknown key 'cv'"),
        ("poisson:rate=1,requests=2,prompt=3", "'output' is missing"),
        ("poisson:rate=1,rate=2", "'rate' must be given one value, once"),
        ("poisson:rate", "'rate' must be given one value"),
        ("poisson:", "unknown key ''"),
        ("poisson:rate=0,requests=2,prompt=3,output=4", r"^workload 'poisson:rate=0,.*': rate must be a positive number"),
        ("poisson:rate=1,requests=0,prompt=3,output=4", r"^workload 'poisson:.*': requests must be at least 1, got 0"),
        ("poisson:rate=fast,requests=2,prompt=3,output=4", r"rate must be a number \(float\), got 'fast'"),
        ("poisson:rate=1,requests=2.5,prompt=3,output=4", r"requests must be a number \(int\), got '2.5'"),
        ("poisson:rate=1,requests=2,prompt=9-3,output=4", "prompt must be LENGTH, LOW-HIGH .* got '9-3'"),
        ("poisson:rate=1,requests=2,prompt=3,output=x", "output must be LENGTH, LOW-HIGH"),
        ("poison:rate=1", "neither a file nor a specification; give a path or one of poisson:rate="),
        ("azure:rate=1", "'path' is missing"),
        ("poisson:rate=1,prompt=3,output=4,prefixes=2", "prefixes has no effect without prefix"),
        ("poisson:rate=1,prompt=3,output=4,think=2", "think has no effect without turns"),
        ("poisson:rate=1x,prompt=3,output=4", r"rate must be RATE or RATExSECONDS\+.*, got '1x'"),
        ("poisson:rate=1x0,prompt=3,output=4", "rate must be RATE or RATExSECONDS"),
        ("poisson:rate=1x9,requests=3,prompt=3,output=4", "stages of a rate say how many requests there are; drop requests"),
        ("poisson:rate=0.01x9,prompt=3,output=4", "0.09 requests are expected in all"),
        ("poisson:rate=1,prompt=0~2,output=4", "prompt must be LENGTH, LOW-HIGH .* or MEAN~STDEV, got '0~2'"),
        ("poisson:rate=1,prompt=3,output=4,turns=2,think=-1", "think must be a number of seconds, at least 0, got '-1'"),
        ("closed:concurrency=2,prompt=3,output=4,turns=2", "unknown key 'turns'"),
        ("poisson:rate=1,prompt=3,output=4,prefix=-1", "prefix must be at least 0 tokens, and prefixes at least 1, got -1 and 1"),
        ("poisson:rate=1,prompt=3,output=4,seed=-1", "seed must be at least 0, got -1"),
        ("constant:rate=1x9,prompt=3,output=4,seed=-1", "seed must be at least 0, got -1"),
        ("poisson:rate=1,prompt=3,output=4,prefix=9,prefixes=0", "prefixes at least 1, got 9 and 0"),
    ],
)
def test_bad_specification_is_named(text: str, message: str) -> None:
    """The message holds the text, the rule and the value."""
    with pytest.raises(WorkloadError, match=message):
        parse_workload(text)


def test_azure_refuses_what_it_would_have_to_ignore(trace: Path) -> None:
    """More requests than the trace has, and a seed without a rate, are errors."""
    with pytest.raises(WorkloadError, match="holds only 5 such requests"):
        parse_workload(f"azure:path={trace},requests=6")
    with pytest.raises(WorkloadError, match="seed has no effect"):
        parse_workload(f"azure:path={trace},seed=1")
    with pytest.raises(WorkloadError, match="seed must be at least 0, got -1"):
        parse_workload(f"azure:path={trace},rate=1,seed=-1")
    with pytest.raises(WorkloadError, match="speed has no effect on arrivals at a rate"):
        parse_workload(f"trace:path={trace},rate=1,speed=2")
    with pytest.raises(WorkloadError, match="start must be at least 0 s and before end, got 3 and 2"):
        parse_workload(f"trace:path={trace},start=3,end=2")
    with pytest.raises(WorkloadError, match="no request; a workload needs at least one"):
        parse_workload(f"trace:path={trace},start=30")


def test_what_is_left_out_is_a_hundred_requests_and_seed_0() -> None:
    """The help's own example runs; blanks around commas and equal signs say nothing."""
    short = parse_workload("poisson:rate=2,prompt=512,output=64-256")
    spelt = parse_workload("poisson:rate=2, prompt = 512, output=64-256, requests=100, seed=0")
    assert short.requests == spelt.requests
    assert len(short.requests) == 100


def test_a_steady_beat() -> None:
    """`constant` sends at equal gaps."""
    served = parse_workload("constant:rate=4,requests=5,prompt=3,output=4")
    assert [r.arrival_ns for r in served.requests] == [0, 250_000_000, 500_000_000, 750_000_000, 1_000_000_000]


def test_one_rate_after_another() -> None:
    """A rate may have stages; how many requests come follows from them, and each stage has its own share."""
    steady = parse_workload("constant:rate=1x4+0x10+2x2,prompt=3,output=4")
    assert [r.arrival_ns / 1e9 for r in steady.requests] == [0, 1, 2, 3, 14, 14.5, 15, 15.5]
    drawn = parse_workload("poisson:rate=2x500+8x500,prompt=3,output=4,seed=1").requests
    early = sum(r.arrival_ns < 500e9 for r in drawn)
    assert early == pytest.approx(1000, abs=100)
    assert len(drawn) - early == pytest.approx(4000, abs=200)


def test_lengths_of_a_normal_distribution() -> None:
    """`MEAN~STDEV` draws them so, never below 1."""
    served = parse_workload("poisson:rate=1,requests=4000,prompt=500~100,output=2~3").requests
    prompts = [r.num_prompt_tokens for r in served]
    assert statistics.mean(prompts) == pytest.approx(500, abs=8)
    assert statistics.stdev(prompts) == pytest.approx(100, abs=8)
    assert min(r.num_output_tokens for r in served) == 1


def test_conversations() -> None:
    """Each turn begins with all that was said before, behind the same shared beginning, and waits for it."""
    served = parse_workload("poisson:rate=1,requests=30,prompt=10-20,output=5-9,turns=1-4,think=1.5,prefix=100,prefixes=2")
    by_id = {r.request_id: r for r in served.requests}
    later = [r for r in served.requests if r.turn and r.turn.follows is not None]
    assert len(served.requests) - len(later) == 30
    assert later
    for request in later:
        before = by_id[request.turn.follows]  # type: ignore[union-attr, index]
        assert 10 <= request.num_prompt_tokens - before.num_prompt_tokens - before.num_output_tokens <= 20
        assert (request.prefix_ids, request.prefix_block_size) == (before.prefix_ids, before.prefix_block_size)
        assert request.turn == Turn(before.turn.conversation, before.request_id, 1_500_000_000)  # type: ignore[union-attr]
    plain = parse_workload("poisson:rate=1,requests=30,prompt=10-20,output=5-9,prefix=100,prefixes=2").requests
    firsts = [replace(r, request_id=0, turn=None) for r in served.requests if r not in later]
    assert firsts == [replace(r, request_id=0) for r in plain]
