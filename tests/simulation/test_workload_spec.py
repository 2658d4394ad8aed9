"""The command line's `--workload SPEC|FILE`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.errors import WorkloadError
from dooly.simulation import LengthRange, Request, generate_workload, parse_workload

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
        ("poisson:rate=fast,requests=2,prompt=3,output=4", r"rate must be a number \(float\), got 'fast'"),
        ("poisson:rate=1,requests=2.5,prompt=3,output=4", r"requests must be a number \(int\), got '2.5'"),
        ("poisson:rate=1,requests=2,prompt=9-3,output=4", "prompt must be LENGTH or LOW-HIGH .* got '9-3'"),
        ("poisson:rate=1,requests=2,prompt=3,output=x", "output must be LENGTH or LOW-HIGH"),
        ("poison:rate=1", "neither a file nor a specification; give a path or one of poisson:rate="),
        ("azure:rate=1", "'path' is missing"),
        ("poisson:rate=1,prompt=3,output=4,prefixes=2", "prefixes has no effect without prefix"),
        ("poisson:rate=1,prompt=3,output=4,prefix=-1", "prefix must be at least 0 tokens, and prefixes at least 1, got -1 and 1"),
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


def test_what_is_left_out_is_a_hundred_requests_and_seed_0() -> None:
    """The help's own example runs; blanks around commas and equal signs say nothing."""
    short = parse_workload("poisson:rate=2,prompt=512,output=64-256")
    spelt = parse_workload("poisson:rate=2, prompt = 512, output=64-256, requests=100, seed=0")
    assert short.requests == spelt.requests
    assert len(short.requests) == 100
