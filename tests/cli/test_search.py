"""`dooly search`: its table, its files and its errors."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import dooly as package

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(package.__file__).parent / "data"
WORKLOAD = ("--hardware", "h200", "--workload", "poisson:requests=40,prompt=256,output=4")
LIMITS = ("--ttft-p90", "100ms", "--tpot-p90", "15ms")


def test_a_search_ends_in_a_table_and_a_command(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """The best come first, in files too, and those that cannot be have a reason; a second one from its state changes nothing."""
    files = [tmp_path / name for name in ("found.json", "found.csv", "found.html")]
    outputs = [word for file in files for word in (f"--{file.suffix[1:]}", file)]
    search = ("search", "llama-3.1-8b", *WORKLOAD, *LIMITS, "--max-num-seqs", "2,8", "--tensor-parallel-size", "1,3")
    state = tmp_path / "state.jsonl"
    found = dooly(*search, "--processes", 1, "--state", state, *outputs, "--top", 2, "--slo", "e2e-p99=3s", "--price", "h200=3.5")
    assert found[0] == 0
    assert "E2E P99 ms" in found[1]
    assert "cost/1,000 req" in found[1]
    assert "2 × llama-3.1-8b: 32 attention heads cannot be divided over 3 ranks" in found[1]  # noqa: RUF001 - as counts are written
    assert " [llama-3.1-8b, h200, tp 3, ...]\n" in found[1]
    assert re.search(r"the best's seconds are \d+% measured, .*: docs/gpu-answers\.md\n", found[1])
    document = json.loads(files[0].read_text())
    assert document["limits_s"] == {"ttft_p90": 0.1, "tpot_p90": 0.015, "e2e_p99": 3.0}
    assert document["command"] in found[1]
    best, second, *_ = document["candidates"]
    assert best["goodput_per_gpu"] >= second["goodput_per_gpu"] > 0
    assert best["cost_per_1000_requests"] <= second["cost_per_1000_requests"]
    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    assert [float(row["goodput_per_gpu"] or 0) for row in rows] == [c["goodput_per_gpu"] or 0 for c in document["candidates"]]
    assert "Plotly.newPlot" in files[2].read_text()
    before = [file.read_bytes() for file in (*files, state)]
    again = dooly(*search, "--processes", 1, "--state", state, *outputs, "--top", 2, "--slo", "e2e-p99=3s", "--price", "h200=3.5")
    assert again == found
    assert [file.read_bytes() for file in (*files, state)] == before


def test_a_demanded_rate_says_how_many_it_takes(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """The table, the files and the line above the command say how many copies and GPUs bear the rate together."""
    files = [tmp_path / name for name in ("found.json", "found.csv", "found.html")]
    outputs = [word for file in files for word in (f"--{file.suffix[1:]}", file)]
    search = ("search", "llama-3.1-8b", *WORKLOAD, *LIMITS, "--max-num-seqs", "2,8", "--processes", 1, "--top", 2)
    code, out, _ = dooly(*search, "--rate", 700, "--price", "h200=3.5", *outputs)
    assert code == 0
    document = json.loads(files[0].read_text())
    best = document["candidates"][0]
    copies = math.ceil(700 / best["rate"])
    assert (document["rate"], best["copies"], best["total_gpus"]) == (700, copies, copies)
    assert best["cost_per_1000_requests"] == pytest.approx(copies * 3.5 / 3.6 / 700)
    assert f" 700 requests/s: {copies} GPUs, {copies} of these, each sent an equal share\n" in out
    assert "simulations, for 700 requests/s within TTFT P90 100 ms" in out
    head = out.splitlines()[1]
    assert "copies   GPUs in all" in head
    assert next(csv.DictReader(files[1].read_text().splitlines()))["total_gpus"] == str(copies)
    page = files[2].read_text()
    assert "700 requests/s, TTFT P90 at most 100 ms" in page
    assert ">GPUs in all<" in page
    _, out, _ = dooly(*search, "--workload", f"{WORKLOAD[-1]},rate=4")
    assert " 4 requests/s: 1 GPU\n" in out


def test_numbers_of_engines_are_tried(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Whole engines by number and router, then those apart by role: each a candidate with its label, GPUs and command."""
    file, page = tmp_path / "found.json", tmp_path / "found.html"
    fleets = (
        "--data-parallel-size",
        "1,2",
        "--router",
        "vllm,least-loaded",
        "--prefill-replicas",
        "1",
        "--decode-replicas",
        "1,2",
    )
    files = ("--json", file, "--html", page, "--csv", tmp_path / "found.csv")
    link = ("--kv-transfer", "bandwidth=50,latency=20")
    code, out, err = dooly("search", "llama-3.1-8b", *WORKLOAD, *LIMITS, *fleets, *link, *files, "--processes", 1, "--top", 7)
    assert (code, err) == (0, "")
    assert " engines " in out.splitlines()[1]
    found = json.loads(file.read_text())["candidates"]
    fleets_found = [tuple(one["fleet"][name] for name in ("data_parallel_size", "prefill_replicas", "router")) for one in found]
    whole = {(1, 0, None), (2, 0, "vllm"), (2, 0, "least-loaded")}
    assert set(fleets_found) == whole | {(1, 1, "vllm"), (1, 1, "least-loaded")}
    assert sorted(one["gpus"] for one in found) == [1, 2, 2, 2, 2, 3, 3]
    assert {one["command"].partition("  # ")[2] for one in found} >= {"2 of these, behind a router: least-loaded"}
    assert ">engines<" in page.read_text()
    rows = list(csv.DictReader((tmp_path / "found.csv").read_text().splitlines()))
    assert {row["kv_transfer"] for row in rows} == {"", "5e+10 B/s, 20000 ns"}


def test_a_killed_search_goes_on(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Killed at once in the middle, with two processes, a search ends with the very bytes of one that was left alone with one."""
    arguments = ["search", "llama-3.1-8b", *WORKLOAD, *LIMITS, "--max-num-seqs", "2,8", "--state"]
    state = tmp_path / "killed.jsonl"
    command = [sys.executable, "-m", "dooly", *arguments, state, "--processes", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as killed:
        while killed.poll() is None and (not state.exists() or state.read_bytes().count(b"\n") < 4):
            time.sleep(0.01)
        os.kill(killed.pid, signal.SIGKILL)
    kept = state.read_bytes()
    resumed = dooly(*arguments, state, "--processes", 1, "--json", "-")
    assert resumed == dooly(*arguments, tmp_path / "whole.jsonl", "--processes", 1, "--json", "-")
    assert resumed[0] == 0
    assert state.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "no latency is limited"),
        (("--ttft-p90", "fast"), "--ttft-p90: 'fast' is no time"),
        (("--ttft-p90", "0"), "--ttft-p90: '0' is no positive finite time"),
        (("--slo", "e2e-p99=-1s"), "--slo: e2e_p99: '-1s' is no positive finite time"),
        ((*LIMITS, "--json", "/proc/found.json"), "/proc/found.json cannot be written"),
        (("--slo", "ttft-p42=1s"), "--slo: 'ttft-p42' is none of ttft, tpot, itl, e2e with one of mean, p50, p90,"),
        (("--slo", "e2e-p99=1s", "--slo", "e2e_p99=2s"), "--slo: e2e_p99 is limited twice"),
        ((*LIMITS, "--slo", "tpot-p90=1s"), "--slo: tpot_p90 is limited twice"),
        ((*LIMITS, "--max-num-seqs", "8,many"), "'8,many' must be numbers"),
        ((*LIMITS, "--data-parallel-size", "two"), "--data-parallel-size: 'two' must be whole numbers"),
        ((*LIMITS, "--prefill-replicas", "1"), "1 and 0 make no fleet"),
        ((*LIMITS, "--router", "round-robbin"), "--router: 'round-robbin' is none of vllm, round-robin,"),
        ((*LIMITS, "--router", "vllm"), "--router: one engine needs none"),
        ((*LIMITS, "--interconnect", "bandwidth=50,latency=5"), "--interconnect: engines of one rank have no link"),
        ((*LIMITS, "--processes", "2", "--ray", "auto"), "--processes: the cluster at 'auto' has its own"),
        ((*LIMITS, "--kv-transfer", "bandwidth=1,latency=1"), "--kv-transfer: says over which link"),
        ((*LIMITS, "--price", "h100=2"), "give one for each hardware"),
        ((*LIMITS, "--workload", "closed:concurrency=2,prompt=1,output=1"), "closed loop"),
        ((*LIMITS, "--state", "no-such-folder/state"), "lies in none"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], part: str, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """What cannot be searched exits with 2 and a line that names it."""
    code, out, err = dooly("search", "llama-3.1-8b", *WORKLOAD, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert part in err


def test_models_have_a_space_between_them(dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A comma between models, as between devices, is told."""
    code, _, err = dooly("search", "llama-3.1-70b,qwen3-32b", *WORKLOAD, *LIMITS)
    assert (code, "write several models with spaces between them" in err) == (2, True)


def test_results_are_printed_before_a_file_fails(dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A disk that is full after a long search costs the file alone, and is told in one line."""
    code, out, err = dooly("search", "llama-3.1-8b", *WORKLOAD, *LIMITS, "--processes", 1, "--json", "/dev/full")
    assert (code, "vllm serve" in out) == (1, True)
    assert err == "dooly: /dev/full: cannot be written (No space left on device); make room there, or give another file\n"


def test_what_was_left_out_of_a_file_is_told(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A file's failed requests are not served, which a note says."""
    file = tmp_path / "burst.csv"
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
    rows = [f"{i},1,1,ChatGPT,16,{2 if i else 0},18,API log" for i in range(5)]
    file.write_text("\n".join([header, *rows]) + "\n")
    code, _, err = dooly("search", "llama-3.1-8b", *WORKLOAD, "--workload", file, *LIMITS, "--processes", 1)
    assert code == 0
    assert "1 failed request without response tokens left out" in err


def test_a_number_alone_is_seconds_where_a_limit_has_its_flag(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """The flags of the two limits that every search has take 0.1 as well as 100ms; behind --slo a time has its unit."""
    file = tmp_path / "found.json"
    limits = ("--ttft-p90", "0.1", "--tpot-p90", "1.5e-2")
    code, _, _ = dooly("search", "llama-3.1-8b", *WORKLOAD, *limits, "--processes", 1, "--json", file)
    assert (code, json.loads(file.read_text())["limits_s"]) == (0, {"ttft_p90": 0.1, "tpot_p90": 0.015})
    code, _, err = dooly("search", "llama-3.1-8b", *WORKLOAD, "--slo", "ttft-p90=0.1")
    assert (code, "'0.1' is no time with its unit" in err) == (2, True)


def test_where_nothing_meets_the_limits_that_is_told(dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A limit below what a request alone takes gives no table, but what the latency is without load."""
    workload = ("--workload", "poisson:requests=3,prompt=16,output=2")
    code, out, _ = dooly("search", "llama-3.1-8b", *WORKLOAD, *workload, "--ttft-p90", "1us", "--processes", 1)
    assert code == 0
    assert "misses ttft_p90 at every rate" in out
    assert "no candidate meets the limits" in out


def test_what_the_best_stands_on_is_told(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """As in a simulation: what is doubtful in its measurements, and how much of the time goes beyond them."""
    folder, file = tmp_path / "device", tmp_path / "found.csv"
    shutil.copytree(DATA / "h200", folder)
    facts = json.loads((folder / "hardware.json").read_text())
    (folder / "hardware.json").write_text(json.dumps(facts | {"notes": {"linear": "products were measured warm"}}))
    workload = ("--workload", "poisson:requests=2,prompt=60000,output=1", "--ttft-p90", "60s", "--max-num-batched-tokens", 65536)
    given = ("--hardware", folder, *workload, "--csv", file, "--processes", 1)
    code, _, err = dooly("search", "llama-3.1-8b", *given)
    assert code == 0
    assert f"dooly: note: {folder}: products were measured warm" in err
    assert "dooly: warning: llama-3.1-8b: 100% of the seconds are of steps with more tokens" in err
    (row,) = csv.DictReader(file.read_text().splitlines())
    assert (float(row["extrapolated_share"]), row["notes"]) == (pytest.approx(1.0), "products were measured warm")


def test_policies_are_tried(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Each policy at each budget is a candidate, and none is one; long prompts are served at a higher rate with less of them."""
    files = ("--json", tmp_path / "found.json", "--csv", tmp_path / "found.csv", "--html", tmp_path / "found.html")
    workload = ("--hardware", "h200", "--workload", "poisson:prompt=30000,output=256,requests=30", "--max-model-len", "32000")
    policies = ("--kv-policy", "none,snapkv", "--kv-budget", "0.1,0.5")
    code, out, _ = dooly("search", "llama-3.1-8b", *workload, "--tpot-p90", "0.05", *policies, *files, "--processes", 1)
    assert code == 0
    found = json.loads((tmp_path / "found.json").read_text())["candidates"]
    rates = {(each["serving"]["kv_policy"] or {"budget": 1})["budget"]: each["rate"] for each in found}
    assert rates[0.1] > rates[0.5] > rates[1]
    assert "snapkv at 0.1" in out
    assert "# with snapkv at 0.1, which vLLM lacks" in out
    assert "snapkv at 0.5" in (tmp_path / "found.csv").read_text()


def test_what_was_varied_keeps_its_column(dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Where all policies but none are refused, the row that is left says which it is."""
    workload = ("--hardware", "h200", "--workload", "poisson:prompt=2000,output=8,requests=10", "--tpot-p90", "0.05")
    code, out, _ = dooly("search", "gemma-2-9b", *workload, "--kv-policy", "none,SnapKV", "--kv-budget", 0.2, "--processes", 1)
    assert code == 0
    assert "1 × --kv-policy: gemma-2-9b: snapkv at 0.2 is simulated only where" in out  # noqa: RUF001 - as counts are written
    head, row = (line.split() for line in out.splitlines() if line.startswith((" model", " gemma-2-9b")))
    assert row[head.index("kv_policy")] == "none"
