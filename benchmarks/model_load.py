"""Time loading a latency model in a new process, after imports: from a store, fitted to it before or not, or of a shipped device.

Claim: a fitted model loads in under 0.3 s, and so does one of a shipped device.

    python benchmarks/model_load.py llama-3.1-8b --hardware h200
    python benchmarks/model_load.py llama-3.1-8b --db STORE

Prints one JSON object, times in seconds: `load` is the median and the extremes of several processes, `loaded` the heavy packages
that they loaded. With --db, `fit` is what the first load takes in a copy of the store from which kept fits are taken out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_CODE = """
import json, sys, time
from dbstore import Store
from dooly.engines import find_model
from dooly.predict import load_latency_model
model, hardware, place, mode = sys.argv[1:]
start_s = time.perf_counter()
load_latency_model(None if hardware else Store.open(place, mode), find_model(model), hardware=hardware or None)
load_s = time.perf_counter() - start_s
print(json.dumps({"load_s": load_s, "loaded": sorted({"sympy", "catboost", "scipy", "networkx", "torch"} & sys.modules.keys())}))
"""


def load(model: str, hardware: str, place: str, mode: str) -> dict[str, Any]:
    """Return what a new process tells of loading a model."""
    command = [sys.executable, "-c", _CODE, model, hardware, place, mode]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a listed name, or a folder with a config.json")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--db", type=Path, help="a store in a folder that holds the model; it stays as it is")
    where.add_argument("--hardware", help="a device that ships")
    parser.add_argument("--repeat", type=int, default=5, help="processes")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"model": arguments.model, "of": str(arguments.hardware or arguments.db)}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "store")
        if arguments.db is not None:
            shutil.copytree(arguments.db, place)
            shutil.rmtree(place / "regressors", ignore_errors=True)
            result["fit"] = round(load(arguments.model, "", str(place), "a")["load_s"], 2)
        found = [load(arguments.model, arguments.hardware or "", str(place), "r") for _ in range(arguments.repeat)]
    times_s = np.quantile([each["load_s"] for each in found], (0.5, 0, 1)).round(3).tolist()
    result |= {"load": dict(zip(("median", "min", "max"), times_s, strict=True)), "loaded": found[0]["loaded"]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
