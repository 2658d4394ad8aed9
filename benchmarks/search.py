"""The best of 200 candidates, found by `dooly.search` and by trying every rate: `python benchmarks/search.py`.

Every rate of the grid is tried that would make a candidate better than the one found, up to the throughput at which all of its
requests are served at once; none may meet the limits. The search must come first: processes load and compile all that they need.
"""

from __future__ import annotations

import os
import sys
import time

from dooly import find_model, search
from dooly.searching import Evaluation, evaluate, index_up_to, rate_at, read_load, room

WORKLOAD = "poisson:prompt=256-1024,output=32-128,requests=200"
LIMITS = {"ttft_p90": 0.3, "tpot_p90": 0.015}
CHOICES = {
    "max_num_seqs": (8, 16, 24, 32, 48, 64, 96, 128, 192, 256),
    "max_num_batched_tokens": (512, 1024, 2048, 4096, 8192),
    "tensor_parallel_size": (1, 2),
}


def main() -> int:
    """Search, try every better rate, and print both."""
    started_s, before = time.perf_counter(), os.times()
    result = search([find_model("llama-3.1-8b")], ["h200", "h100"], WORKLOAD, LIMITS, choices=CHOICES, top=1)
    wall_s, after = time.perf_counter() - started_s, os.times()
    used_s = sum(after[:4]) - sum(before[:4])
    best = result.best
    assert best is not None
    assert best.goodput_per_gpu is not None
    print(f"{len(result.candidates)} candidates, {result.num_simulations} simulations")
    others = f"{os.getloadavg()[0]:.1f} processes ran or waited to, {os.cpu_count()} cores"
    print(f"{wall_s:.0f} s, {used_s:.0f} s of processors; {others}")
    print(f"best: {best.goodput_per_gpu:.2f} requests/s for each GPU; {best.candidate.hardware}: {best.candidate.command}")
    load, tried, better = read_load(WORKLOAD), 0, 0
    for found in result.candidates:
        if not found.evaluations:
            continue
        gpus = found.candidate.num_gpus
        highest = index_up_to(found.evaluations[-1].requests_per_s)
        for index in range(index_up_to(best.goodput_per_gpu * gpus) + 1, highest + 1):
            at = evaluate(found.candidate, load.at(rate_at(index)), rate_at(index))
            assert isinstance(at, Evaluation)
            tried += 1
            if room(at.latencies_s, LIMITS) <= 1:
                better += 1
                print(f"better: {rate_at(index) / gpus:.2f}; {found.candidate.hardware}: {found.candidate.command}")
    print(f"every better rate: {tried} simulations, of which {better} meet the limits")
    return min(better, 1)


if __name__ == "__main__":
    sys.exit(main())
