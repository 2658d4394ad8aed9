"""How true is the predicted latency of a plain module? Predict sizes that were not measured, and run its forward at them.

    python benchmarks/module_accuracy.py --db latencies --hidden 512 --layers 4

A decoder-only language model is traced, profiled into the store, and predicted between the measured sizes. Its forward runs at
those sizes in several passes, each in another order and over copies of the module that keep its weights cold. The spread is the
median difference of a pass from the median of all; the share is what the operations add up to in the predicted forward.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import time
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

import dooly
from dbstore import Store
from dooly.measure import module_copies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

MEASURED = {"batch": (1, 2, 4, 8), "seq": (16, 64, 256)}
UNSEEN = ((1, 32), (1, 180), (2, 100), (3, 16), (3, 40), (5, 128), (6, 220), (7, 80), (8, 24))
VOCAB = 2000


def main() -> None:
    """Trace, profile, predict, run, and print a line a size and a summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--db", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--passes", type=int, default=5, help="passes over all sizes, each in another order")
    parser.add_argument("--runs", type=int, default=7, help="timed forwards of a size in one pass")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    traced = dooly.trace(language_model(args.hidden, args.layers), request_dims={"ids": ("batch", "seq")})
    traced(torch.randint(0, VOCAB, (2, 8)))
    store = Store.open(args.db, "a")
    print(dooly.profile_module(traced, store, request_dims=MEASURED))
    latency = dooly.load_module_latency(traced, store)
    measured = measure(cycle(module_copies(traced)), args.passes, args.runs)
    rows = []
    for (batch, seq), passes in zip(UNSEEN, measured, strict=True):
        step = latency(batch=batch, seq=seq)
        real_s = median(passes)
        rows.append({
            "batch": batch,
            "seq": seq,
            "measured_ms": 1e3 * real_s,
            "predicted_ms": 1e3 * step.seconds,
            "ratio": step.seconds / real_s,
            "spread": median(abs(p / real_s - 1) for p in passes),
            "share": 1 - step.breakdown_s["module"] / step.seconds,
        })  # fmt: skip
        print("  ".join(f"{k} {v:7.3f}" if isinstance(v, float) else f"{k} {v:4d}" for k, v in rows[-1].items()))
    summary = {
        "schema": 1,
        "device": latency.environment.device,
        "num_threads": latency.environment.num_threads,
        "median_ratio": median(row["ratio"] for row in rows),
        "median_error": median(abs(row["ratio"] - 1) for row in rows),
        "max_error": max(abs(row["ratio"] - 1) for row in rows),
        "median_spread": median(row["spread"] for row in rows),
        "median_share": median(row["share"] for row in rows),
    }
    print(json.dumps(summary))
    if args.json:
        args.json.write_text(json.dumps(summary | {"rows": rows}, indent=1) + "\n")


def language_model(hidden: int, num_layers: int) -> nn.Module:
    """Return the small language model that the tests measure, at another size."""
    place = Path(__file__).parents[1] / "tests" / "plain_modules.py"
    spec = importlib.util.spec_from_file_location("plain_modules", place)
    assert spec is not None
    assert spec.loader is not None
    modules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modules)
    model: nn.Module = modules.Transformer(VOCAB, hidden, hidden // 64, num_layers)
    return model.eval()


@torch.no_grad()
def measure(copies: Iterator[nn.Module], passes: int, runs: int) -> list[list[float]]:
    """Return the median time of the forward at each unseen size in each pass, in seconds."""
    found: list[list[float]] = [[] for _ in UNSEEN]
    for number in range(passes):
        order = list(range(len(UNSEEN)))
        random.Random(number).shuffle(order)  # noqa: S311 - an order of work
        for place in order:
            ids = torch.randint(0, VOCAB, UNSEEN[place])
            next(copies)(ids)
            found[place].append(median(_forward_s(next(copies), ids) for _ in range(runs)))
    return found


def _forward_s(module: nn.Module, ids: torch.Tensor) -> float:
    begin = time.perf_counter()
    result = module(ids)
    elapsed = time.perf_counter() - begin
    del result
    return elapsed


if __name__ == "__main__":
    main()
