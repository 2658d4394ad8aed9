"""Predict Qwen3 32B on two ranks by the records of Llama 3.1 8B alone, and compare with its own records of the same device.

    python benchmarks/cross_model.py [--batches 200]

Linear layers go by a family fitted to Llama's ten pairs of widths, attention by Llama's regressor (as a ratio to the roofline),
and all that Llama has not by its bytes. Collectives over a stated link are the same on both sides, so errors also stand without
them. Batches are drawn at random: decodes of unequal contexts, four in ten beside a prompt.
"""

from __future__ import annotations

import argparse

import numpy as np

from dooly.batch import Batch
from dooly.engines import ServingConfig, find_model
from dooly.predict import Interconnect, load_latency_model, load_model_by_others

DEVICE, KNOWN, UNKNOWN, RANKS = "rtxpro6000", "llama-3.1-8b", "qwen3-32b", 2
LINK = Interconnect(16e9, 20_000.0)


def draw(number: int) -> list[Batch]:
    """Return random batches within the engine's limits."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(number):
        count = int(2 ** rng.uniform(0, 8))
        contexts = tuple(map(int, rng.integers(16, int(2 ** rng.uniform(6, 13)), size=count)))
        prompt = (int(rng.integers(16, 2048 - count)),) if rng.random() < 0.4 else ()  # noqa: PLR2004 - four in ten
        batches.append(Batch((*(1,) * count, *prompt), (*contexts, *(0 for _ in prompt))))
    return batches


def main() -> None:
    """Print how far the predictions lie apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=200)
    args = parser.parse_args()
    serving = ServingConfig(tensor_parallel_size=RANKS, max_model_len=16_384, max_num_seqs=257)
    model = find_model(UNKNOWN)
    others = load_model_by_others(DEVICE, model, serving, find_model(KNOWN), LINK)
    own = load_latency_model(model=model, serving=serving, hardware=DEVICE, interconnect=LINK)
    errors: dict[str, list[float]] = {"whole steps": [], "without collectives": []}
    for batch in draw(args.batches):
        parts = [model.step(batch).breakdown_s for model in (others, own)]
        whole, rest = (
            [sum(s for name, s in part.items() if keep or ".all_" not in name) for part in parts] for keep in (True, False)
        )
        errors["whole steps"].append(whole[0] / whole[1] - 1)
        errors["without collectives"].append(rest[0] / rest[1] - 1)
    for name, found in errors.items():
        sizes = np.abs(found)
        spread = f"median {np.median(sizes):.1%}, p90 {np.quantile(sizes, 0.9):.1%}, mean error {np.mean(found):+.1%}"
        print(f"{UNKNOWN} by {KNOWN}, {args.batches} {name}: {spread}")


if __name__ == "__main__":
    main()
