"""Time opening a large latency store and reading one model's records from it.

Claim: with 5,000 operations in the store, opening it and reading 12 operations of 30 points each takes under 0.3 s.

    python benchmarks/store_open.py --num-operations 5000

Builds the store in a temporary folder and prints one JSON object, times in seconds. `warm` repeats in one process; `fresh` is the
first read of a new process, on top of which `imports` (of the store and its codecs) comes. `compacted` is what counting (`info`)
and checking (`verify`) the whole store takes, `alone` the same where each record of 100 operations lies in a group of its own,
as while a profile runs. The folder is in the page cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dbstore import Environment, Record, Store

_NUM_ALONE = 100
"""Operations in the store that was not compacted."""
ENVIRONMENT = Environment(
    device="benchmark device",
    device_kind="cpu",
    driver="0",
    torch_version="0",
    engine="none",
    engine_version="0",
    attention_backend="none",
    dtype="bfloat16",
    kv_cache_dtype="auto",
    block_size=16,
    execution_mode="eager",
    quantization=None,
    num_threads=None,
)


def build(path: Path, num_operations: int, num_points: int, num_samples: int, *, alone: bool = False) -> None:
    """Fill a store, one compacted sweep an operation, or each record `alone`."""
    store = Store.open(path, "a")
    store.write_document("environments", ENVIRONMENT.digest, ENVIRONMENT.to_json())
    generator = np.random.default_rng(0)
    for index in range(num_operations):
        samples_ns = generator.integers(10_000, 10_000_000, (num_points, num_samples))
        records = [
            Record(f"{index:032x}", ENVIRONMENT.digest, {"num_tokens": point}, samples_ns[point], {"wall_s": 0.1})
            for point in range(num_points)
        ]
        for group in [[record] for record in records] if alone else [records]:
            store.write(*group)


def read(path: Path, signatures: list[str]) -> float:
    """Return the seconds it takes to open the store and read the records of `signatures`."""
    start_s = time.perf_counter()
    store = Store.open(path)
    for signature in signatures:
        store.read(signature, ENVIRONMENT.digest)
    return time.perf_counter() - start_s


def read_fresh(path: Path, signatures: list[str]) -> dict[str, float]:
    """Return the seconds of imports and of the first read in a new process."""
    code = (
        "import sys, json, time; start_s = time.perf_counter(); import numcodecs.zstd, google_crc32c, dbstore; "
        "imports = time.perf_counter() - start_s; sys.path.insert(0, sys.argv[1]); import store_open; from pathlib import Path; "
        "print(json.dumps({'imports': imports, 'fresh': store_open.read(Path(sys.argv[2]), sys.argv[3:])}))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(path), *signatures]
    times: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return times


def look_over(path: Path) -> dict[str, float]:
    """Return the seconds that counting and checking a store take, and the records checked a second."""
    store = Store.open(path)
    start_s = time.perf_counter()
    num_records = store.info().num_records
    counted_s = time.perf_counter()
    assert store.verify() == ()
    verify_s = time.perf_counter() - counted_s
    return {"info": round(counted_s - start_s, 3), "verify": round(verify_s, 3), "records_per_s": round(num_records / verify_s)}


def summary(times_s: list[float]) -> dict[str, float]:
    """Return median and extremes."""
    return {
        name: round(float(value), 4)
        for name, value in zip(("median", "min", "max"), np.quantile(times_s, (0.5, 0, 1)), strict=True)
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-operations", type=int, default=5000, help="operations in the store")
    parser.add_argument("--num-read", type=int, default=12, help="operations that are read")
    parser.add_argument("--num-points", type=int, default=30, help="points an operation")
    parser.add_argument("--num-samples", type=int, default=100, help="samples a point")
    parser.add_argument("--repeat", type=int, default=15, help="times to repeat each measurement")
    arguments = parser.parse_args()
    indices = np.random.default_rng(1).choice(arguments.num_operations, arguments.num_read, replace=False)
    signatures = [f"{index:032x}" for index in indices]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store")
        start_s = time.perf_counter()
        build(path, arguments.num_operations, arguments.num_points, arguments.num_samples)
        result: dict[str, Any] = {**vars(arguments), "build_s": round(time.perf_counter() - start_s, 1)}
        result["warm"] = summary([read(path, signatures) for _ in range(arguments.repeat)])
        fresh = [read_fresh(path, signatures) for _ in range(arguments.repeat)]
        for name in ("fresh", "imports"):
            result[name] = summary([times[name] for times in fresh])
        result["compacted"] = look_over(path)
        build(path.with_name("alone"), _NUM_ALONE, arguments.num_points, arguments.num_samples, alone=True)
        result["alone"] = look_over(path.with_name("alone"))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
