"""`dooly simulate` with several engines."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORDS = ("simulate", "llama-3.1-8b", "--hardware", "h200", "--workload", "poisson:rate=90,requests=9,prompt=64,output=5")
APART = ("--prefill-replicas", 1, "--decode-replicas", 2, "--kv-transfer", "bandwidth=50,latency=20")


def test_engines_are_told_apart(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Three engines behind vLLM's balancing: JSON, CSV, table and page say what each served."""
    files = [tmp_path / name for name in ("f.json", "f.csv", "f.html")]
    code, out, _ = dooly(*WORDS, "--data-parallel-size", 3, "--json", files[0], "--csv", files[1], "--html", files[2])
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines() if " serve " in line] == [[str(n), "serve", "3"] for n in range(3)]
    found = json.loads(files[0].read_text())
    assert [one["requests"] for one in found["replicas"]] == [3, 3, 3]
    assert found["fleet"]["data_parallel_size"] == 3
    assert found["requests"] == 9
    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    assert sorted(row["replica"] for row in rows) == sorted("012" * 3)
    page = files[2].read_text()
    assert "<h2>Engines</h2>" in page
    assert "Where the time goes" in page


def test_engines_may_differ_in_role(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """One engine prefills all requests, two decode them; a slower link makes first tokens later by what it takes longer."""
    means = []
    for number, link in enumerate(("bandwidth=50,latency=20", "bandwidth=50,latency=5020")):
        file = tmp_path / f"{number}.json"
        code, _, _ = dooly(*WORDS, *APART[:-1], link, "--json", file, "--csv", tmp_path / "f.csv")
        assert code == 0
        found = json.loads(file.read_text())
        assert [(one["role"], one["requests"] > 0) for one in found["replicas"]] == [("prefill", True), *[("decode", True)] * 2]
        means.append(found["ttft_s"]["mean"])
    assert 0 < means[1] - means[0] < 0.02
    head = (tmp_path / "f.csv").read_text().splitlines()[0]
    assert head.endswith(",finish_s,prefill_replica,decode_replica")


def test_a_router_is_chosen_by_name(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Every router serves all requests; one engine is what it is without these options."""
    for router in ("round-robin", "least-loaded", "prefix-aware", "vllm"):
        code, _, err = dooly(*WORDS, "--data-parallel-size", 2, "--router", router, "--json", tmp_path / "f.json")
        assert (code, err) == (0, "")
        assert sum(one["requests"] for one in json.loads((tmp_path / "f.json").read_text())["replicas"]) == 9
    for number, options in enumerate(((), ("--data-parallel-size", 1))):
        assert dooly(*WORDS, *options, "--csv", tmp_path / f"{number}.csv")[0] == 0
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--prefill-replicas", "1"], "--prefill-replicas, --decode-replicas: 1 and 0 make no fleet"),
        (APART[:4], "--kv-transfer: says over which link"),
        (["--kv-transfer", "bandwidth=50,latency=20"], "--kv-transfer: says over which link"),
        ([*APART[:4], "--kv-transfer", "fast"], "--kv-transfer: 'fast' is not as"),
        ([*APART, "--data-parallel-size", "2"], "--data-parallel-size: counts engines that do both"),
        (["--data-parallel-size", "2", "--router", "fair"], "--router: 'fair' is none of vllm, round-robin, least-loaded,"),
        (["--router", "round-robin"], "--router: one engine needs none"),
        (["--data-parallel-size", "2", "--perfetto", "trace.json"], "--perfetto shows one engine"),
    ],
)
def test_options_that_make_no_fleet_are_refused(
    options: list[str], rule: str, dooly: Callable[..., tuple[int, str, str]]
) -> None:
    """Each is one line and exit code 2."""
    code, out, err = dooly(*WORDS, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert rule in err


def test_experts_that_engines_would_share_are_refused(dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Ranks of vLLM would run in step over shared experts; behind another router they are engines of their own."""
    words = ("simulate", "qwen3-30b-a3b", *WORDS[2:], "--data-parallel-size", 2)
    code, _, err = dooly(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert "share the experts of qwen3-30b-a3b" in err
    assert dooly(*words, "--router", "round-robin")[0] == 0
