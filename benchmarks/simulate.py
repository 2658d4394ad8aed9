"""How long simulations take themselves: Dooly's loops beside aisimulate and vLLM's own scheduler, on one trace in one run.

    python benchmarks/simulate.py TRACE [--repeat N] [--aisimulate PROGRAM] [--vllm] [--memory]

TRACE is the Azure 2023 conversation trace: all of its requests, and the first 5,000 that are shorter than 8,000 tokens. Each is
served on the H200 latencies of Llama 3.1 8B that ship with Dooly, and in steps of fixed length; by the compiled loop, and by the
one in Python on the 5,000. aisimulate (0.13, installed anywhere) serves the same requests on its H200 timing of the same model,
and with fixed times; its seconds are those that it reports of its own loop. Arms take turns, so that what else the machine does
falls on all of them; a median stands beside its least and greatest. vLLM's scheduler, without a model, serves 60 of the requests.
`--memory` serves 100,000 and a million synthetic requests in processes of their own.

Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly.engines import find_model
from dooly.latency import LatencyBackend, LinearLatency
from dooly.predict import default_serving, load_latency_model
from dooly.simulation import SchedulerConfig, Workload, parse_workload, scheduler_config, simulate

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from dooly.batch import Batch
    from dooly.power_cap import PowerCap
    from dooly.simulation import SimulationResult

    Arm = Callable[[], tuple[float, float, int]]
    """Returns seconds, those of a processor, and steps; the last two are 0 where nobody tells."""

MODEL, HARDWARE = "llama-3.1-8b", "h200"
PREFILL_MS, DECODE_MS = 20.0, 8.0
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 1024, 8192
SIZES = (100_000, 1_000_000)
VLLM_REQUESTS = 60
FIXED = LinearLatency(1e6 * DECODE_MS)


class InPython(LatencyBackend):
    """A backend that the loop in Python asks for each run of steps."""

    power_cap: PowerCap | None

    def __init__(self, latency: Any) -> None:  # noqa: ANN401 - a latency model
        self._latency = latency
        self.host, self.power_cap = latency.host, latency.power_cap

    def step_ns(self, batch: Batch) -> int:
        """Ask the backend."""
        return int(self._latency.step_ns(batch))

    def decode_run_ns(self, num_computed_tokens: npt.NDArray[np.int64], num_steps: int) -> npt.NDArray[np.int64]:
        """Ask the backend."""
        found: npt.NDArray[np.int64] = self._latency.decode_run_ns(num_computed_tokens, num_steps)
        return found


def h200(max_model_len: int) -> tuple[Any, SchedulerConfig]:
    """Return the shipped latencies, and the engine's settings."""
    source = find_model(MODEL)
    limits = {"max_num_seqs": MAX_NUM_SEQS, "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS}
    serving = default_serving(source, HARDWARE, max_model_len=max_model_len, **limits)
    latency = load_latency_model(None, source, serving, hardware=HARDWARE)
    return latency, scheduler_config(serving, latency)


def dooly_arm(workload: Workload, latency: LatencyBackend, config: SchedulerConfig) -> Arm:
    """Return what serves a workload by Dooly."""

    def run() -> tuple[float, float, int]:
        started_s = time.process_time()
        result: SimulationResult = simulate(workload, latency, config)
        return result.wall_s, time.process_time() - started_s, result.num_steps

    return run


def aisimulate_arm(program: str, workload: Workload, folder: Path, timing: dict[str, Any], max_model_len: int) -> Arm:
    """Return what serves a workload by aisimulate; no two prompts share tokens."""
    trace, settings = folder / f"{len(workload.requests)}.jsonl", folder / f"{len(workload.requests)}-{timing['type']}.yaml"
    with trace.open("w") as handle:
        first = 0
        for request in workload.requests:
            blocks = range(first, first - (-request.num_prompt_tokens // 512))
            first = blocks.stop
            lengths = {"input_length": request.num_prompt_tokens, "output_length": request.num_output_tokens}
            handle.write(json.dumps({"timestamp": request.arrival_ns / 1e6, **lengths, "hash_ids": list(blocks)}) + "\n")
    scheduler = {"max_batched_tokens": MAX_NUM_BATCHED_TOKENS, "max_sequences": MAX_NUM_SEQS}
    engine = {"model": "meta-llama/Meta-Llama-3.1-8B", "hardware": "h200_sxm", "backend": "vllm", "context_length": max_model_len}
    document = {  # JSON is YAML
        "traffic": {
            "source": {"type": "trace", "paths": [str(trace)], "format": "mooncake", "block_size": 512},
            "load": {"type": "trace_timestamps"},
        },
        "engine": engine | {"workers": {"aggregated": {"scheduler": scheduler, "timing": timing}}},
    }
    settings.write_text(json.dumps(document))

    def run() -> tuple[float, float, int]:
        command = [
            program,
            "predict",
            "-c",
            str(settings),
            "--format",
            "json",
            "--output-dir",
            str(folder / "out"),
            "--overwrite",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
        return json.loads(done.stdout)["wall_time_ms"] / 1e3, 0.0, 0

    return run


def vllm_line(workload: Workload, config: SchedulerConfig) -> dict[str, Any]:
    """Return what vLLM's asynchronous scheduler takes for some of a workload, without a model and in virtual time."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    path = Path(__file__).parents[1] / "tests" / "simulation" / "oracle.py"
    spec = importlib.util.spec_from_file_location("oracle", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: cannot be loaded")
    oracle = importlib.util.module_from_spec(spec)
    sys.modules["oracle"] = oracle
    spec.loader.exec_module(oracle)
    requests = workload.requests[:VLLM_REQUESTS]
    with tempfile.TemporaryDirectory() as folder:
        scheduler = oracle.vllm_scheduler_factory(Path(folder))(config)
        started_s = time.perf_counter()
        times_ns = oracle.vllm_times_ahead(oracle.Case(requests, config), scheduler, int(1e6 * DECODE_MS))
        taken_s = time.perf_counter() - started_s
    served = simulate(Workload(requests, "some"), FIXED, config)
    same = [tuple(round(1e9 * s) for s in (row.scheduled_s, row.first_token_s, row.finish_s)) for row in served.rows] == times_ns
    line = {"arm": "vllm's scheduler alone", "requests": len(requests), "median_s": round(taken_s, 3), "steps": served.num_steps}
    return line | {"us_per_step": round(1e6 * taken_s / served.num_steps, 1), "same_times_as_dooly": same}


def memory_line(kind: str, number: int) -> dict[str, Any]:
    """Serve synthetic requests, and return the most memory that this process has taken, and its processor seconds."""
    if kind == "h200":
        latency, config = h200(8192)
    else:
        latency, config = LinearLatency(2e6, per_token_ns=1e4, per_cached_token_ns=1), SchedulerConfig(4096, 20_000, 256)
    workload = parse_workload(f"poisson:rate=20,requests={number},prompt=250-750,output=100-300")
    started_s = time.process_time()
    result = simulate(workload, latency, config)
    taken_s = time.process_time() - started_s
    result.summary()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = {"arm": f"memory, {kind}", "requests": number, "processor_s": round(taken_s, 2), "steps": result.num_steps}
    return line | {"peak_mb": round(peak_mb), "requests_per_processor_s": round(number / taken_s)}


def race(arms: dict[str, Arm], number: int, repeat: int) -> None:
    """Let arms take turns and print each one's median, and by how much it is slower than the first."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    worked: dict[str, list[float]] = {name: [] for name in arms}
    steps = dict.fromkeys(arms, 0)
    for turn in range(repeat + 1):
        for name, arm in arms.items():
            wall_s, processor_s, steps[name] = arm()
            if turn:  # the first loads and compiles
                taken[name].append(wall_s)
                worked[name].append(processor_s)
    reference = {timing: statistics.median(taken[f"dooly, {timing}"]) for timing in ("h200", "fixed")}
    for name, walls_s in taken.items():
        median_s = statistics.median(walls_s)
        line: dict[str, Any] = {"arm": name, "requests": number, "median_s": round(median_s, 4)}
        line |= {"min_s": round(min(walls_s), 4), "max_s": round(max(walls_s), 4)}
        line["times_dooly"] = round(median_s / reference["fixed" if name.endswith("fixed") else "h200"], 2)
        if steps[name]:
            each_us = round(1e6 * statistics.median(worked[name]) / steps[name], 3)
            line |= {"steps": steps[name], "processor_us_per_step": each_us}
        print(json.dumps(line | {"requests_per_s": round(number / median_s)}), flush=True)


def race_on(trace: str, max_model_len: int, folder: Path, given: argparse.Namespace) -> None:
    """Serve one workload by all arms."""
    workload = parse_workload(trace)
    latency, config = h200(max_model_len)
    arms = {"dooly, h200": dooly_arm(workload, latency, config), "dooly, fixed": dooly_arm(workload, FIXED, config)}
    if len(workload.requests) == given.few:
        arms["dooly in Python, h200"] = dooly_arm(workload, InPython(latency), config)
    if given.aisimulate:
        fixed = {"type": "fixed", "prefill_ms": PREFILL_MS, "decode_ms": DECODE_MS}
        for name, timing in (("h200", {"type": "default"}), ("fixed", fixed)):
            arms[f"aisimulate, {name}"] = aisimulate_arm(given.aisimulate, workload, folder, timing, max_model_len)
    race(arms, len(workload.requests), given.repeat)
    if given.vllm and len(workload.requests) == given.few:
        print(json.dumps(vllm_line(workload, config)), flush=True)


def main() -> None:
    """Run all that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--few", type=int, default=5_000)
    parser.add_argument("--aisimulate", metavar="PROGRAM", help="path of its command")
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "NUMBER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        print(json.dumps(memory_line(given.serve[0], int(given.serve[1]))), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        race_on(f"azure:path={given.trace},requests={given.few},max_tokens=8000", 8192, Path(folder), given)
        race_on(str(given.trace), 16_384, Path(folder), given)
    for kind in ("fixed", "h200") if given.memory else ():
        for number in SIZES:
            command = [sys.executable, __file__, str(given.trace), "--serve", kind, str(number)]
            print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
