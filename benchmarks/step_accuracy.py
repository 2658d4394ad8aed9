"""Predicted against measured engine-step time, over batches that no profile measured.

    python benchmarks/step_accuracy.py smollm2-135m --db PATH [--no-enforce-eager] [engine limits]

Runs the whole model in the real engine, realises prefill, decode and mixed batches whose sizes lie between the points of
the profiling grid, and prints each batch's measured median beside the prediction, then the median error as JSON. With
--no-enforce-eager both are of the engine that compiles the model. Run nothing beside it.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from dbstore import Store
from dooly.batch import Batch
from dooly.catalog import DECODE_GROWTH_TOKENS, measurement_batches
from dooly.engines import ServingConfig, find_model, start_engine
from dooly.measure import BatchRunner
from dooly.predict import load_latency_model

if TYPE_CHECKING:
    from dooly.engines import Engine

LIMITS = ("dtype", "max_model_len", "max_num_batched_tokens", "max_num_seqs")
"""Settings of the engine that the profile was made with."""


def batches(serving: ServingConfig) -> list[Batch]:
    """Return at least 30 batches of sizes that the profiling grid does not hold."""
    rng = random.Random(1)  # noqa: S311 - sizes of batches
    longest = serving.max_model_len - 128
    found = [Batch((n,), (0,), 1) for n in (22, 55, 110, 150, 300, 430, 600, 900, 1200)]
    found += [Batch((n,), (c,), 1) for n, c in ((80, 300), (150, 250), (200, 600), (400, 900))]
    found += [Batch((90, 40), (0, 0), 2), Batch((120, 120, 120), (0, 0, 0), 3)]
    for count in (1, 3, 5, 7, 10, 12, 14, 20, 28, 40, 56):
        found.append(Batch((1,) * count, tuple(rng.randint(20, longest // 2) for _ in range(count))))
    for count, prefill in ((2, 60), (3, 300), (6, 40), (6, 200), (10, 500), (12, 100), (20, 150), (24, 700), (40, 64)):
        contexts = tuple(rng.randint(20, longest // 2) for _ in range(count))
        found.append(Batch((1,) * count + (prefill,), (*contexts, 0), 1))
    for count in (6, 9, 11, 13, 15):
        found.append(Batch((1,) * count, tuple(rng.randint(20, longest // 2) for _ in range(count))))
    measured = {(b.num_new_tokens, b.num_computed_tokens) for b in measurement_batches(serving)}
    fresh = [b for b in found if (b.num_new_tokens, b.num_computed_tokens) not in measured]
    within = [b for b in fresh if b.num_reqs <= serving.max_num_seqs and b.num_tokens <= serving.max_num_batched_tokens]
    longest = serving.max_model_len - DECODE_GROWTH_TOKENS
    return [b for b in within if max(map(sum, zip(b.num_new_tokens, b.num_computed_tokens, strict=True))) <= longest]


def main() -> None:
    """Measure, predict, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--db", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=3, help="passes over all batches, each in another order")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of a batch in one pass")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-enforce-eager", dest="enforce_eager", action="store_false")
    for name in LIMITS:
        default = getattr(ServingConfig(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    args = parser.parse_args()
    limits = {name: getattr(args, name) for name in LIMITS}
    serving = ServingConfig(enforce_eager=args.enforce_eager, async_scheduling=False, **limits)  # as `start_engine` runs it
    model = find_model(args.model)
    latency = load_latency_model(Store.open(args.db), model, serving)
    tried = batches(serving)
    engine = start_engine(model, serving)
    try:
        measured = measure(engine, tried, args.passes, args.steps)
    finally:
        engine.close()
    rows = []
    for batch, passes in zip(tried, measured, strict=True):
        # Decodes grow by a token a step: predict the batch in the middle of what was timed.
        pairs = zip(batch.num_new_tokens, batch.num_computed_tokens, strict=True)
        grown = tuple(computed + (args.steps // 2 + 1 if new == 1 else 0) for new, computed in pairs)
        predicted = latency.step_ns(Batch(batch.num_new_tokens, grown, batch.num_new_requests))
        real = median(passes)
        noise = median(abs(p / real - 1) for p in passes)
        rows.append(
            {
                "num_tokens": batch.num_tokens,
                "num_reqs": batch.num_reqs,
                "num_new_requests": batch.num_new_requests,
                "measured_ms": real / 1e6,
                "predicted_ms": predicted / 1e6,
                "error": predicted / real - 1,
                "noise": noise,
            }
        )
        print("  ".join(f"{k} {v:7.2f}" if isinstance(v, float) else f"{k} {v:4d}" for k, v in rows[-1].items()))
    errors = sorted(abs(row["error"]) for row in rows)
    summary = {
        "schema": 1,
        "model": model.name,
        "device": latency.environment.device,
        "execution_mode": latency.environment.execution_mode,
        **limits,
        "batches": len(rows),
        "median_error": median(errors),
        "p90_error": errors[int(0.9 * len(errors))],
        "max_error": errors[-1],
        "median_noise": median(row["noise"] for row in rows),
    }
    print(json.dumps(summary))
    if args.json:
        args.json.write_text(json.dumps(summary | {"rows": rows}, indent=1) + "\n")


def measure(engine: Engine, tried: list[Batch], passes: int, steps: int) -> list[list[float]]:
    """Return the median step time of each batch in each pass, in nanoseconds; passes keep slow drift out of the comparison."""
    found: list[list[float]] = [[] for _ in tried]
    for number in range(passes):
        order = list(range(len(tried)))
        random.Random(number).shuffle(order)  # noqa: S311 - an order of work
        for place in order:
            with BatchRunner(engine, tried[place]).running() as runner:
                runner.step()
                found[place].append(median(runner.step() for _ in range(steps)))
    return found


if __name__ == "__main__":
    main()
