"""What a latency model takes of a processor to price a step: alone, of many at once, and of a run of decodes.

    python benchmarks/step_cost.py [--model M] [--hardware H] [--ranks N]

Prints one JSON object: microseconds a step, the median and the extremes of the rounds, each over 1,000 steps that are new to the
model: single batches of 1 to 200 decodes, as many at once, and a run of 64 requests.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

import numpy as np

import dooly

if TYPE_CHECKING:
    from collections.abc import Callable

_STEPS = 1000
_CONTEXT = 4000


def _batches(rng: np.random.Generator) -> list[dooly.Batch]:
    """Return batches of 1 to 200 decodes."""
    sizes = rng.integers(1, 200, _STEPS, endpoint=True)
    return [dooly.Batch((1,) * size, tuple(rng.integers(1, _CONTEXT, size).tolist())) for size in sizes.tolist()]


def _round(latency: dooly.LatencyModel, rng: np.random.Generator) -> dict[str, float]:
    """Return the microseconds a step of each way to ask."""
    singles, many, contexts = _batches(rng), _batches(rng), rng.integers(1, _CONTEXT, 64).tolist()
    asked: dict[str, Callable[[], object]] = {
        "step": lambda: [latency.step(batch) for batch in singles],
        "steps": lambda: latency.steps(many),
        "decode_run": lambda: latency.decode_run(contexts, num_steps=_STEPS),
    }
    found = {}
    for name, ask in asked.items():
        started_s = time.perf_counter()
        ask()
        found[name] = 1e6 * (time.perf_counter() - started_s) / _STEPS
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-70b")
    parser.add_argument("--hardware", default="h200")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    model = dooly.find_model(asked.model)
    serving = dooly.default_serving(model, asked.hardware, tensor_parallel_size=asked.ranks)
    latency = dooly.load_latency_model(model=model, serving=serving, hardware=asked.hardware)
    rng = np.random.default_rng(0)
    _round(latency, rng)  # compiles and loads what the first one needs
    rounds = [_round(latency, rng) for _ in range(asked.rounds)]
    result: dict[str, object] = {"model": asked.model, "hardware": asked.hardware, "ranks": asked.ranks}
    for name in rounds[0]:
        middle, low, high = np.quantile([each[name] for each in rounds], (0.5, 0, 1)).round(2).tolist()
        result[name] = {"median": middle, "min": low, "max": high}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
