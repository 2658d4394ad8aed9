"""How far simulations lie from the real engine on this machine: fresh profiles of a stated length, three workloads each.

    python benchmarks/serving_accuracy.py MODEL [--budget-seconds S] [--repeats N] [--dtype D] [--state DIR] [--json FILE]

Each repeat profiles the model into a store of its own with `dooly profile --budget-seconds`, then runs `dooly validate` on a
light load, a closed loop, and prompts near the longest: the same requests each time. The goal is TTFT within the larger of 5 %
and the noise, and TPOT within the larger of 8 % and the noise; nothing here is fitted to any of it. Noise is told twice: between
the two runs of the real engine in one validation, a minute apart; and between runs of different repeats, as far apart as a
profile and a validation are, by which a machine that drifts shows what is reproducible at all. What the state holds already is
not run again. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly.device import native_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMITS = ("--max-model-len", "512", "--max-num-batched-tokens", "512", "--max-num-seqs", "16")
WORKLOADS = {
    "light": "poisson:rate=0.5,requests=16,prompt=64-256,output=16-48,seed=1",
    "closed loop": "closed:concurrency=6,requests=36,prompt=64-256,output=16-48,seed=1",
    "long prompts": "poisson:rate=0.3,requests=10,prompt=320-448,output=16-48,seed=1",
}
GOALS = {"ttft": 0.05, "tpot": 0.08}


def main() -> None:
    """Run what the arguments ask for, and print a row for each workload of each repeat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--budget-seconds", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default=native_dtype())
    parser.add_argument("--state", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    state = options.state or Path(tempfile.mkdtemp())
    rows = []
    for repeat in range(options.repeats):
        folder = state / f"{options.model}-{repeat}"
        store, flags = folder / "db", ("--dtype", options.dtype, *LIMITS)
        if not (folder / "profiled").exists():
            folder.mkdir(parents=True, exist_ok=True)
            _dooly("profile", options.model, "--db", str(store), "--budget-seconds", str(options.budget_seconds), *flags)
            (folder / "profiled").touch()
        for name, text in WORKLOADS.items():
            found = folder / f"{name.replace(' ', '-')}.json"
            if not found.exists():
                _dooly("validate", options.model, "--db", str(store), *flags, "--workload", text, "--json", str(found))
            rows.append({"model": options.model, "repeat": repeat, "workload": name, **_row(json.loads(found.read_text()))})
            print(json.dumps(rows[-1]), flush=True)
    within = {metric: sum(row[metric]["within"] for row in rows) for metric in GOALS}
    over = {name: {metric: _between_repeats(rows, name, metric) for metric in GOALS} for name in WORKLOADS}
    for row in rows:
        for metric, goal in GOALS.items():
            found, apart = row[metric], over[row["workload"]][metric]
            row[metric] |= {
                "noise_between_repeats": apart,
                "within_all": abs(found["mean_error"]) <= max(goal, found["noise"], apart),
            }
    within_all = {metric: sum(row[metric]["within_all"] for row in rows) for metric in GOALS}
    summary = {
        "schema": 2,
        "budget_s": options.budget_seconds,
        "dtype": options.dtype,
        "runs": len(rows),
        "within": within,
        "within_all": within_all,
    }
    print(json.dumps(summary))
    if options.json:
        options.json.write_text(json.dumps(summary | {"rows": rows}, indent=1) + "\n")


def _dooly(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dooly", *arguments], check=True, stdout=sys.stderr)


def _between_repeats(rows: Sequence[dict[str, Any]], workload: str, metric: str) -> float:
    """Return how far the means of two runs of the real engine lie apart, on average over runs of different repeats."""
    runs = [row[metric]["real_means"] for row in rows if row["workload"] == workload]
    pairs = [(one, other) for left, right in permutations(runs, 2) for one in left for other in right]
    return sum(abs(one / other - 1) for one, other in pairs) / len(pairs) if pairs else 0.0


def _row(validation: dict[str, Any]) -> dict[str, Any]:
    """Return errors of the means with the noise of each, and whether they are within the goal."""
    row: dict[str, Any] = {key: validation[key] for key in ("step", "slowdown", "others_cores")}
    for metric, goal in GOALS.items():
        report = validation[metric]
        limit = max(goal, report["noise"])
        numbers = {key: report[key] for key in ("mean_error", "mape", "noise")}
        means = [run[f"{metric}_s"]["mean"] for run in validation["real_runs"]]
        row[metric] = {**numbers, "real_means": means, "within": abs(report["mean_error"]) <= limit}
    return row


if __name__ == "__main__":
    main()
