"""`dooly hardware` and `dooly simulate --hardware`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from dooly.cli import main

if TYPE_CHECKING:
    from pathlib import Path

WORKLOAD = "poisson:rate=4,requests=12,prompt=100-400,output=8-32,seed=0"


def test_devices_are_listed_with_their_source(capsys: pytest.CaptureFixture[str]) -> None:
    """A row a device, and who measured below."""
    assert main(["hardware"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("h100", "h200", "NVIDIA H200", "rtxpro6000", "aiconfigurator", "LLMServingSim"))


def test_a_simulation_says_what_it_stands_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without a store: shares by source, how well a step is known, blocks and what was taken for granted."""
    file = tmp_path / "r.json"
    words = ["simulate", "llama-3.1-70b", "--hardware", "h200", "--tensor-parallel-size", "4", "--workload", WORKLOAD]
    assert main([*words, "--json", str(file)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(text in out for text in ("% family", "% measured", "KV cache", "1024 requests", "taken for granted"))
    document = json.loads(file.read_text())
    assert sum(document["provenance"].values()) == pytest.approx(1)
    assert document["requests"] == 12
    assert document["extrapolated"] == 0


def test_prompts_that_begin_alike_wait_less_with_prefix_caching(capsys: pytest.CaptureFixture[str]) -> None:
    """It is on unless turned off, and the answer says which."""
    words = ["simulate", "llama-3.1-8b", "--hardware", "h200", "--json", "-"]
    words += ["--workload", "closed:concurrency=8,requests=16,prompt=100,output=8,prefix=1024"]
    found = []
    for flags in ([], ["--no-enable-prefix-caching"]):
        assert main([*words, *flags]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [answer["serving"]["enable_prefix_caching"] for answer in found] == [True, False]
    assert found[0]["ttft_s"]["mean"] < 0.7 * found[1]["ttft_s"]["mean"]


def test_a_quantised_model_is_served_without_an_engine(capsys: pytest.CaptureFixture[str]) -> None:
    """Llama 3.1 70B in FP8 fits on one H200, which has no room for it in full precision; the answer says what was quantised."""
    words = ["simulate", "llama-3.1-70b", "--hardware", "h200", "--workload", WORKLOAD]
    assert main(words) == 2
    assert "its weights take 141.1 GB" in capsys.readouterr().err
    assert main([*words, "--quantization", "fp8", "--kv-cache-dtype", "fp8"]) == 0
    assert "weights fp8, KV cache fp8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ([], "give either --db PATH, or --hardware NAME"),
        (["--db", "x", "--hardware", "h200"], "give either --db PATH, or --hardware NAME"),
        (["--hardware", "h300"], "--hardware: 'h300' is none of"),
        (["--hardware", "h200", "--pipeline-parallel-size", "2"], "--pipeline-parallel-size: 2 ranks can be traced but"),
        (["--hardware", "h200", "--attention-backend", "TRITON_ATTN"], "measured on h200 is FLASH_ATTN, not TRITON_ATTN"),
        (["--hardware", "h200", "--interconnect", "bandwidth=50,latency=5"], "--interconnect: one rank has no link to others"),
        (["--hardware", "h200", "--interconnect", "fast"], "--interconnect: 'fast' is not as"),
        (["--hardware", "h200", "--gpu-memory-utilization", "2"], "--gpu-memory-utilization: 2.0 does not lie above 0"),
    ],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], flags: list[str], rule: str) -> None:
    """Exit code 2, and a line that says what to give."""
    assert main(["simulate", "llama-3.1-8b", "--workload", WORKLOAD, *flags]) == 2
    assert rule in " ".join(capsys.readouterr().err.split())
