"""LLMServingSim (casys-kaist/LLMServingSim), unmodified, on its own bundle and on one that Dooly exports, for the same device.

    python benchmarks/llmservingsim.py lookups CHECKOUT --python PYTHON [--json FILE]
    python benchmarks/llmservingsim.py served CHECKOUT --python PYTHON [--json FILE]

PYTHON is the path of an interpreter that has its requirements. Each command prints one JSON object. Llama 3.1 8B on an RTX PRO
6000, whose measurements in Dooly are LLMServingSim's own.

- `lookups`: the steps of a simulated run, priced by its loader and look-ups; nothing of it has to be built.
- `served`: a workload through the whole of it, network simulator and all, which must be built (`scripts/compile.sh`), and through
  Dooly's simulator with the same KV cache and limits. The bundle lies in the checkout meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import dooly
from dooly.adapters import export_llmservingsim
from dooly.simulation import StepLog

_Array = np.ndarray[Any, np.dtype[np.float64]]
_NAME = "meta-llama/Llama-3.1-8B"
_COLUMNS = {"wait_s": "queuing_delay", "ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "latency"}
_SERVED = "poisson:rate=8,requests=40,prompt=64-1024,output=16-48,seed=0"
_LOOK_UP = """
import json, sys
import serving.core.trace_generator as own
hardware, model, variant, kind, layers = *sys.argv[1:5], int(sys.argv[5])
db = own._load_perf_db(hardware, model, variant, {1}, kind)
sequence = db["architecture"]["sequence"]
def latency_ns(name, step):
    if name == "attention":
        return own._lookup_attention_with_skew(db, 1, *step["attention"])
    if name in db["architecture"]["catalog"]["per_sequence"]:
        return own._lookup_per_sequence(db, name, 1, step["sequences"])
    return own._lookup_dense(db, name, 1, step["tokens"])
inside = [*sequence["pre_attn"], *sequence["post_attn"], *sequence["mlp_dense"]]
outside = [*sequence["prologue"], *sequence["head"]]
steps = json.load(sys.stdin)
print(json.dumps([layers * sum(latency_ns(n, s) for n in inside) + sum(latency_ns(n, s) for n in outside) for s in steps]))
"""


def _loaded() -> tuple[Any, Any, dooly.LatencyModel]:
    """Return the model, its settings on the device, and its latencies there."""
    model = dooly.find_model("llama-3.1-8b")
    limits = {"max_num_batched_tokens": 2048, "max_num_seqs": 128, "max_model_len": 16384}
    serving = dooly.default_serving(model, "rtxpro6000", enable_prefix_caching=False, **limits)
    return model, serving, dooly.load_latency_model(model=model, serving=serving, hardware="rtxpro6000")


def _asked(batch: dooly.Batch) -> dict[str, Any]:
    """Return what LLMServingSim looks a batch up by: counts, and of attention sums of prompts and the decodes' contexts."""
    pairs = list(zip(batch.num_new_tokens, batch.num_computed_tokens, strict=True))
    decodes = [computed + 1 for new, computed in pairs if new == 1]
    prompts = [(new, computed) for new, computed in pairs if new > 1]
    mean = sum(decodes) // len(decodes) if decodes else 0
    spread = (max(decodes), min(decodes)) if decodes else (0, 0)
    sums = (sum(new for new, _ in prompts), sum(computed for _, computed in prompts))
    return {"tokens": batch.num_tokens, "sequences": batch.num_reqs, "attention": [*sums, len(decodes), mean, *spread]}


def lookups(asked: argparse.Namespace) -> dict[str, Any]:
    """Price the steps of a run by LLMServingSim's look-ups, on its own bundle and on an exported one."""
    model, serving, latency = _loaded()
    log = StepLog()
    workload = "poisson:rate=4,requests=100,prompt=64-1024,output=64-256,seed=0"
    dooly.simulate(dooly.parse_workload(workload), latency, dooly.scheduler_config(serving, latency), steps=log)
    batches = [run.batch(step) for run in log.runs for step in range(len(run.starts_ns))]
    steps = json.dumps([_asked(batch) for batch in batches])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        perf = place / "profiler" / "perf"
        perf.mkdir(parents=True)
        (perf / "OWN").symlink_to(asked.checkout.resolve() / "profiler" / "perf" / "RTXPRO6000")
        export_llmservingsim(latency, model, serving, perf / "DOOLY" / _NAME / "bf16")
        (place / "run").mkdir()
        took = {}
        for hardware in ("OWN", "DOOLY"):
            command = [asked.python, "-c", _LOOK_UP, hardware, _NAME, "bf16", "llama", "32"]
            environment = os.environ | {"PYTHONPATH": str(asked.checkout.resolve())}
            done = subprocess.run(
                command, input=steps, cwd=place / "run", env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            took[hardware] = np.array(json.loads(done.stdout.splitlines()[-1])) / 1e9
        store = dooly.Store.open(place / "db", "a")
        dooly.imports.import_measurements(
            store, place / "profiler" / "perf" / "DOOLY" / _NAME / "bf16", model, serving, tool="llmservingsim"
        )
        read_back_s = dooly.load_latency_model(store, model, serving).steps(batches).seconds
    dooly_s = latency.steps(batches).seconds
    prompts = np.array([max(batch.num_new_tokens) > 1 for batch in batches])
    gaps_s = took["DOOLY"].sum() - took["OWN"].sum()
    return {
        "peer": "casys-kaist/LLMServingSim",
        "workload": workload,
        "steps": len(batches),
        "seconds": {
            "own_bundle": round(float(took["OWN"].sum()), 4),
            "exported": round(float(took["DOOLY"].sum()), 4),
            "dooly": round(float(dooly_s.sum()), 4),
        },
        "gaps_s": round(
            float(
                latency.gap_ns * 1e-9 * len(batches) * sum(op.count for op in latency.traced.operations if op.stage != "engine")
            ),
            4,
        ),
        "exported_less_own_s": round(float(gaps_s), 4),
        "exported_over_dooly": _spread(took["DOOLY"] / dooly_s),
        "read_back_over_dooly": _spread(read_back_s / dooly_s),
        "own_over_exported": _spread(took["OWN"] / took["DOOLY"]),
        "own_over_exported_with_prompts": _spread((took["OWN"] / took["DOOLY"])[prompts]),
    }


def _spread(ratio: _Array) -> dict[str, float]:
    return {name: round(float(np.percentile(ratio, at)), 4) for name, at in (("p10", 10), ("p50", 50), ("p90", 90))}


def served(asked: argparse.Namespace) -> dict[str, Any]:
    """Serve a workload by the whole of LLMServingSim on both bundles, and by Dooly."""
    model, serving, latency = _loaded()
    workload = dooly.parse_workload(_SERVED)
    perf = asked.checkout.resolve() / "profiler" / "perf" / "DOOLY"
    export_llmservingsim(latency, model, serving, perf / _NAME / "bf16")
    try:
        found, waits_s = {}, {}
        for name, hardware in (("own_bundle", "RTXPRO6000"), ("exported", "DOOLY")):
            found[name], waits_s[name] = _peer_run(asked, workload, hardware)
    finally:
        shutil.rmtree(perf)
    longer_s = waits_s["exported"] - waits_s["own_bundle"]
    # Its KV cache, and like it, a schedule that waits for each step.
    config = replace(dooly.scheduler_config(serving, latency), num_kv_blocks=36578, async_scheduling=False)
    log = StepLog()
    started_s = time.perf_counter()
    own = dooly.simulate(workload, latency, config, steps=log)
    wall_s = time.perf_counter() - started_s
    ours = own.summary()
    return {
        "peer": "casys-kaist/LLMServingSim",
        "workload": _SERVED,
        **found,
        "exported_waits_longer_s": {"mean": round(longer_s.mean(), 6), "deviation": round(longer_s.std(ddof=1), 6)},
        "dooly": {
            "requests": ours["requests"],
            "ttft_s": round(ours["ttft_s"]["mean"], 5),
            "tpot_s": round(ours["tpot_s"]["mean"], 6),
            "e2e_s": round(ours["e2e_s"]["mean"], 4),
            "duration_s": round(ours["duration_s"], 4),
            "steps": sum(len(run.starts_ns) for run in log.runs),
            "wall_s": round(wall_s, 3),
        },
    }


def _peer_run(asked: argparse.Namespace, workload: dooly.simulation.Workload, hardware: str) -> tuple[dict[str, float], _Array]:
    """Run LLMServingSim on the bundles of a hardware, and return means of what it says of requests, and how long each waited."""
    checkout = asked.checkout.resolve()
    cluster = json.loads((checkout / "configs" / "cluster" / "single_node_single_instance.json").read_text())
    cluster["nodes"][0]["instances"][0]["hardware"] = hardware
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "cluster.json").write_text(json.dumps(cluster))
        rows = [
            {
                "input_toks": request.num_prompt_tokens,
                "output_toks": request.num_output_tokens,
                "arrival_time_ns": request.arrival_ns,
            }
            for request in workload.requests
        ]
        (place / "requests.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        near = os.path.relpath(place, checkout)  # it takes such paths only
        command = [
            *(asked.python, "-m", "serving", "--cluster-config", f"{near}/cluster.json"),
            *("--dataset", f"{near}/requests.jsonl", "--output", str(place / "found.csv"), "--dtype", "bfloat16"),
            *("--no-enable-prefix-caching", "--max-num-seqs", "128", "--max-num-batched-tokens", "2048"),
        ]
        # It starts `python` by that name.
        environment = os.environ | {"PATH": os.pathsep.join([str(Path(asked.python).parent), os.environ["PATH"]])}
        started_s = time.perf_counter()
        subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=sys.stderr)
        wall_s = time.perf_counter() - started_s
        with (place / "found.csv").open(newline="") as handle:
            answers = list(csv.DictReader(handle))
    ends = [float(row["end_time"]) for row in answers]
    columns = {name: np.array([float(row[column]) for row in answers]) / 1e9 for name, column in _COLUMNS.items()}
    means = {
        "requests": len(answers),
        **{name: round(float(column.mean()), 6) for name, column in columns.items()},
        "duration_s": round((max(ends) - min(float(row["arrival"]) for row in answers)) / 1e9, 4),
        "wall_s": round(wall_s, 1),
    }
    return means, columns["wait_s"]


def main() -> None:
    """Run one comparison and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lookups", "served"))
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--python", required=True, type=os.path.abspath)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    text = json.dumps({"lookups": lookups, "served": served}[asked.what](asked), indent=2)
    print(text)
    if asked.json is not None:
        asked.json.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
