"""Simulate what real engines served on GPUs, from measurements that ship, and compare: one table, with the peer's own errors.

    python benchmarks/gpu_truth.py GPUDATA [--json FILE]

GPUDATA holds LLMServingSim's real runs (`llmservingsim/DEVICE/MODEL/real-tpN/vllm-requests.jsonl`, `vllm-meta.json`, and that
peer's own `peer-summary.txt` and `peer-cluster.json`). Settings come from the run's own file; of the peer's cluster only its link
is taken, where several ranks have no measured collectives. Nothing is fitted to the runs; one
published constant, the time between two kernels of a CUDA graph, was added with the first run in view.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from dooly.engines import ServingConfig, find_model
from dooly.predict import Interconnect, load_latency_model
from dooly.simulation import compare_runs, read_run, read_workload, scheduler_config, simulate


def judge(folder: Path, hardware: str, model: str) -> dict[str, Any]:
    """Simulate one real run, and return its errors with the peer's."""
    settings = json.loads((folder / "vllm-meta.json").read_text())["engine_kwargs"]
    ranks = settings["tensor_parallel_size"]
    source = find_model(model)
    serving = ServingConfig(
        max_model_len=settings["max_model_len"] or source.max_model_len,
        max_num_seqs=settings["max_num_seqs"],
        max_num_batched_tokens=settings["max_num_batched_tokens"],
        tensor_parallel_size=ranks,
        gpu_memory_utilization=0.9,  # the default of vLLM 0.19
    )
    cluster = json.loads((folder / "peer-cluster.json").read_text())
    link = Interconnect(1e9 * cluster["link_bw"], cluster["link_latency"]) if ranks > 1 else None
    latency = load_latency_model(model=source, serving=serving, hardware=hardware, interconnect=link)
    requests = folder / "vllm-requests.jsonl"
    found = compare_runs(simulate(read_workload(requests), latency, scheduler_config(serving, latency)), read_run(requests))
    summary = (folder / "peer-summary.txt").read_text()
    peer = {
        name: float(value) / 100 for name, value in re.findall(r"^((?:TTFT|TPOT) \w+) .*?([-+][\d.]+)%", summary, re.MULTILINE)
    }
    return {"model": model, "ranks": ranks, "provenance": dict(latency.provenance), "peer": peer} | {
        row.metric: row.to_json() for row in found
    }


def main() -> None:
    """Judge every run there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gpudata", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for folder in sorted((args.gpudata / "llmservingsim").glob("*/*/real-tp*")):
        row = judge(folder, folder.parts[-3], folder.parts[-2])
        rows.append(row)
        for metric, names in (("ttft", ("Mean", "Median", "P90", "P99")), ("tpot", ("Mean", "Median", "P90", "P99"))):
            ours = " ".join(f"{key} {value:+.1%}" for key, value in row[metric]["errors"].items())
            peers = " ".join(f"{row['peer'].get(f'{metric.upper()} {name}', float('nan')):+.1%}" for name in names)
            print(f"{row['model']} x{row['ranks']} {metric.upper()}: {ours} (peer: {peers})")
    if args.json:
        args.json.write_text(json.dumps({"schema": 1, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
