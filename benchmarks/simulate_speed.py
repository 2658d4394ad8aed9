"""How long the simulator itself takes: 1,000 and 10,000 requests, priced by a closed formula that costs next to nothing.

    python benchmarks/simulate_speed.py [--repeat N]

Prints one JSON object a line: the median of the repeats in seconds, their least and greatest, and the steps simulated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import TYPE_CHECKING

import numpy as np

from dooly.simulation import SchedulerConfig, parse_workload, simulate

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.batch import Batch


class LinearLatency:
    """2 ms a step, 10 us a new token and 1 ns a cached one."""

    def step_ns(self, batch: Batch) -> int:
        """Price one step."""
        return 2_000_000 + 10_000 * batch.num_tokens + sum(batch.num_computed_tokens)

    def decode_run_ns(self, num_computed_tokens: npt.NDArray[np.int64], num_steps: int) -> npt.NDArray[np.int64]:
        """Price a run of decode steps."""
        num_reqs = len(num_computed_tokens)
        return 2_000_000 + 10_000 * num_reqs + int(num_computed_tokens.sum()) + num_reqs * np.arange(num_steps)


CONFIGS = {
    "ample": SchedulerConfig(max_model_len=4096, num_kv_blocks=20_000, max_num_seqs=256),
    "preempting": SchedulerConfig(max_model_len=4096, num_kv_blocks=3_000, max_num_seqs=256),
}


def main() -> None:
    """Time each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    num_repeats = parser.parse_args().repeat
    for num_requests in (1_000, 10_000):
        for rate, kv_cache in (("5", "ample"), ("40", "ample"), ("inf", "ample"), ("inf", "preempting")):
            workload = parse_workload(f"poisson:rate={rate},requests={num_requests},prompt=250-750,output=100-300")
            results = [simulate(workload, LinearLatency(), CONFIGS[kv_cache]) for _ in range(num_repeats)]
            walls_s = sorted(result.wall_s for result in results)
            line = {
                "requests": num_requests,
                "rate": rate,
                "kv_cache": kv_cache,
                "median_s": round(statistics.median(walls_s), 4),
                "min_s": round(walls_s[0], 4),
                "max_s": round(walls_s[-1], 4),
                "steps": results[0].num_steps,
                "preemptions": results[0].num_preemptions,
                "median_us_per_step": round(1e6 * statistics.median(walls_s) / results[0].num_steps, 2),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
