"""How well families predict configurations that nobody measured: few or many known, whole configurations held out.

    python benchmarks/families.py GPUDATA/aiconfigurator/h200_sxm [--seeds 3] [--json FILE]

Of each of aiconfigurator's tables 15 % of the configurations (pairs of widths; heads, key/value heads and head size; models) are
held out, and a given number of the others is known; all of a known configuration's points train. Features and settings of the
trees were fixed on the H100's tables before this was run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.imports import family_points
from dooly.predict import Hardware, held_out_errors

if TYPE_CHECKING:
    import numpy.typing as npt

    Points = tuple[npt.NDArray[Any], ...]

HELD_OUT = 0.15
FACTS = {"h100_sxm": 3.35e12, "h200_sxm": 4.8e12}
KNOWN = {"linear": (10, 40, 160, 400), "decodes": (10, 25, 85), "prefills": (10, 25, 96), "experts": (10, 13)}


def judge(points: Points, known: int, seed: int) -> tuple[float, float]:
    """Return median and 90th percentile of the relative error over held-out configurations, with so many known."""
    configurations = points[-1]
    order = np.random.default_rng(seed).permutation(np.unique(configurations))
    held = order[: max(1, round(HELD_OUT * len(order)))]
    trained = np.isin(configurations, order[len(held) :][:known])
    errors = held_out_errors(*points[:3], trained, np.isin(configurations, held))
    median, p90 = np.quantile(errors, [0.5, 0.9])
    return float(median), float(p90)


def main() -> None:
    """Judge every family at every number of known configurations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    hardware = Hardware("", "", 1, FACTS[args.folder.name], 989e12, 132, 1.0, 0.0, "", "")
    points = family_points(args.folder, hardware)
    for family, numbers in KNOWN.items():
        for known in numbers:
            found = np.array([judge(points[family], known, seed) for seed in range(args.seeds)])
            medians, p90s = found.T
            rows.append({"family": family, "known": known, "median": medians.tolist(), "p90": p90s.tolist()})
            spread = f"{medians.min():.1%} to {medians.max():.1%}"
            print(f"{family} {known} known: median {np.median(medians):.1%} ({spread}), p90 {np.median(p90s):.1%}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"schema": 1, "table": args.folder.name, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
