"""Judge what predicts an H200 by its own records and real runs: operations, chosen batches, loads; needs no GPU.

    python benchmarks/h200_truth.py [--json FILE]

`benchmarks/groundtruth/h200` holds what `benchmarks/gpu_run.py` left there: the records of Llama 3.1 8B, and runs of vLLM 0.26 in
its default mode, each load served twice; `h200-2` the same of another quarter of an hour: Llama 3.1 8B in FP8, Qwen3 30B A3B, and
records of both. Printed are

- operations: latencies by the imported tables over those by our own records, at many sizes;
- steady decodes of the chosen batches: predicted over real time between steps, by the imported tables alone, by our own records,
  and by what ships of the device, which is the tables with these records' single operations;
- prompts of the chosen batches, one after another and among decodes: predicted over real time to their end;
- what the host took to launch steps with prompts in the first run of each load: the constants of `scripts/build_data.py`;
- loads: errors of simulated TTFT and TPOT against the second run of each, by the same three, beside the noise between the runs;
  and by what ships with a host at either of the two speeds that it was seen at;
- of the second quarter of an hour the operations, the steady decodes, and the loads: by what ships, and by the same with the host
  as much slower as launches of the first runs of the dense model's loads say.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import tarfile
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dbstore import Store
from dooly.batch import Batch
from dooly.engines import find_model
from dooly.predict import load_latency_model
from dooly.simulation import compare, noise, parse_workload, scheduler_config, simulate
from dooly.validation import read_runs, validate_kept

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dooly.predict import LatencyModel
    from dooly.validation import KeptRuns, ServedRun

RUNS = Path(__file__).parent / "groundtruth" / "h200"
DATA = Path(__file__).parents[1] / "dooly" / "data"
OWN_FILES = ("measured.npz", "curves.npz")
"""What our own records add to the imported tables."""
SECOND = RUNS.with_name("h200-2")
HARDWARE, PROFILED, OTHER = "h200", "llama-3.1-8b", "qwen2.5-7b"
NUM_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048)
NUM_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)
DECODES = [(count, context) for count in (1, 4, 16, 64) for context in (128, 512, 1024, 2048)]
PREFILLS = (64, 128, 256, 512, 1024, 1536, 2048)
HOST_LAYERS = 30
"""Layers of the two models on average."""
LONG_PROMPT = 1000
STEADY = slice(3, 8)
"""Steps of a chosen batch in which only its decodes run, after the first ones."""


def compare_operations(own: LatencyModel, imported: LatencyModel) -> dict[str, dict[str, float]]:
    """Return the median and the spread of imported over own latencies, by operation."""
    ratios: dict[str, list[float]] = defaultdict(list)

    def compare(batch: Batch, wanted: str, name: str = "") -> None:
        found = [model.step(batch).breakdown_s for model in (own, imported)]
        for path in found[0].keys() & found[1].keys():
            module = path.rpartition(".")[2]
            if wanted == {"attn": "attn", "sampler": "requests", "logits_processor": "requests"}.get(module, "tokens"):
                ratios[name or module].append(found[1][path] / found[0][path])

    for number in NUM_TOKENS:
        compare(Batch((number,), (0,), 1), "tokens")
    for number in NUM_REQUESTS:
        compare(Batch((1,) * number, (128,) * number), "requests")
    for count, context in DECODES:
        compare(Batch((1,) * count, (context,) * count), "attn", "attn of decodes")
    for number in PREFILLS:
        compare(Batch((number,), (0,), 1), "attn", "attn of prefills")
    return {name: _spread(found) for name, found in sorted(ratios.items())}


def judge_decodes(model: str, predicted: LatencyModel, runs: Path = RUNS) -> dict[str, float]:
    """Return the median and the spread of predicted over real time between the steps of steady decodes."""
    document = json.loads(lzma.decompress((runs / f"{model}.FLASH_ATTN.default.steps.json.xz").read_bytes()))
    ratios = []
    for episode in document["episodes"]:
        if episode["contexts"]:
            ends = [begin + duration for begin, duration, _ in episode["steps"][STEADY]]
            work = episode["steps"][STEADY.start + 1][2]
            batch = Batch((1,) * len(work), tuple(computed for _, _, computed in work))
            ratios.append(predicted.step_ns(batch) / float(np.median(np.diff(ends))))
    return _spread(ratios)


def judge_prompts(model: str, predicted: LatencyModel) -> dict[str, dict[str, float]]:
    """Return predicted over real time to the end of prompts of 1,024 tokens and more, from idle or behind a step of decodes.

    What is predicted is the device's work and what precedes its first kernel: the host launches such steps in less.
    """
    document = json.loads(lzma.decompress((RUNS / f"{model}.FLASH_ATTN.default.steps.json.xz").read_bytes()))
    ratios: dict[str, list[float]] = {"alone": [], "among decodes": []}
    for episode in document["episodes"]:
        steps = episode["steps"]
        for place, (begin, _, work) in enumerate(steps[:-1]):
            new, computed = [n for _, n, _ in work], [c for _, _, c in work]
            if max(new, default=0) >= LONG_PROMPT:
                time_ns = predicted.step_ns(Batch(tuple(new), tuple(computed)))
                before = steps[place - 1][2] if place else []
                if before:  # a step of decodes, scheduled as this one was sent, runs first
                    time_ns += predicted.step_ns(Batch((1,) * len(before), tuple(c for _, _, c in before)))
                else:
                    time_ns += predicted.host.prepare_ns if predicted.host else 0
                end, duration, _ = steps[place + 1]
                ratios["among decodes" if before else "alone"].append(time_ns / (end + duration - begin))
    return {way: _spread(found) for way, found in ratios.items()}


def kept_loads(runs: Path = RUNS) -> dict[str, KeptRuns]:
    """Return the runs of every load of the engine in its default mode by its name."""
    files = sorted(file for file in runs.glob("*.default.*.json.xz") if ".steps." not in file.name)
    return {file.name.removesuffix(".json.xz"): read_runs(file) for file in files}


def launches_ns(run: ServedRun, largest_graph: int) -> dict[str, list[float]]:
    """Return how long calls took that launched a step with prompts, from idle or while decodes ran, by how it is launched.

    Most decodes end before such a launch does, so that the call takes as long as the launch; where not, it is an upper bound.
    """
    found: dict[str, list[float]] = {"pieces": [], "plain": []}
    before = 0
    for step in run.steps:
        num_tokens = sum(new for _, new, _ in step.work)
        if num_tokens > len(step.work) and before == 0:
            found["plain" if num_tokens > largest_graph else "pieces"].append(1e9 * step.duration_s)
        before = num_tokens - len(step.work)
    return found


def first_launches(loads: Iterable[KeptRuns]) -> dict[str, dict[str, list[float]]]:
    """Return launch times of steps with prompts in first runs, in nanoseconds, by how they are launched and by model."""
    calls: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for kept in loads:
        for way, times in launches_ns(kept.runs[0], kept.serving.cudagraph_capture_sizes[-1]).items():
            calls[way][kept.model] += times
    return calls


def host_times(calls: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Return launch times for a model of 30 layers: means over models of means over calls, by layer."""
    per_layer = {
        way: [np.mean(times) / find_model(model).text_config["num_hidden_layers"] for model, times in models.items() if times]
        for way, models in calls.items()
    }
    return {way: float(HOST_LAYERS * np.mean(times)) for way, times in per_layer.items()}


def judge_speeds(loads: dict[str, KeptRuns]) -> list[dict[str, Any]]:
    """Return the errors of the means against second runs, by what ships, with the host at its fast and at its slow speed."""
    rows = []
    for name, kept in loads.items():
        model, workload = find_model(kept.model), parse_workload(kept.workload)
        latency = load_latency_model(model=model, serving=kept.serving, hardware=HARDWARE)
        assert latency.host is not None
        fast, median, slow = np.quantile(launches_ns(kept.runs[0], latency.host.max_captured_tokens)["plain"], [0.1, 0.5, 0.9])
        for speed, plain_ns in (("fast", fast), ("median", median), ("slow", slow)):
            host = replace(latency.host, plain_ns=round(plain_ns))
            simulated = simulate(workload, latency, scheduler_config(kept.serving, latency), host)
            found = compare(kept.runs[1].result, simulated)
            errors = {"ttft": found.ttft.mean_error, "tpot": found.tpot.mean_error if found.tpot else None}
            rows.append({"run": name, "host": speed, "plain_ms": plain_ns / 1e6} | errors)
    return rows


def judge_second(folder: Path) -> dict[str, Any]:
    """Return what the second quarter of an hour says of what ships."""
    with tarfile.open(SECOND / "records.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    store, loads = Store.open(f"{folder}/db"), kept_loads(SECOND)
    found: dict[str, Any] = {"operations": {}, "decodes": {}, "loads": []}
    dense = [kept for kept in loads.values() if kept.model == PROFILED]
    layers = find_model(PROFILED).text_config["num_hidden_layers"]
    shipped = {
        name: load_latency_model(model=find_model(k.model), serving=k.serving, hardware=HARDWARE) for name, k in loads.items()
    }
    launches = np.mean(first_launches(dense)["plain"][PROFILED])
    host = next(latency.host for name, latency in shipped.items() if loads[name] in dense)
    assert host is not None
    found["host_slowdown"] = slowdown = float(launches / host.plain_ns)
    found["launches_ms"] = {"plain, by layer": float(launches / layers / 1e6)}
    for name, kept in loads.items():
        model, workload = find_model(kept.model), parse_workload(kept.workload)
        stem = name.partition(".FLASH_ATTN")[0]
        if stem not in found["decodes"]:
            found["decodes"][stem] = judge_decodes(stem, shipped[name], SECOND)
            found["operations"][stem] = compare_operations(load_latency_model(store, model, kept.serving), shipped[name])
        noises = noise([run.result for run in kept.runs])
        for by, factor in (("shipped", None), ("shipped, slower host", slowdown)):
            judged = replace(kept, runs=kept.runs[1:])
            row = validate_kept(model, None, workload, judged, HARDWARE, host_slowdown=factor).to_json()
            for metric in ("ttft", "tpot"):
                row[metric]["noise"] = getattr(noises, metric)
            found["loads"].append({"run": name, "by": by} | {key: row[key] for key in ("ttft", "tpot", "step")})
    return found


def judge_loads(store: Store, imported: str, loads: dict[str, KeptRuns]) -> list[dict[str, Any]]:
    """Return the errors against the second run of every load, by each way to predict it, and the noise between its runs."""
    rows = []
    for name, kept in loads.items():
        model, workload = find_model(kept.model), parse_workload(kept.workload)
        noises = noise([run.result for run in kept.runs])
        ways: dict[str, tuple[Store | None, str | None]] = {"imported": (None, imported), "shipped": (None, HARDWARE)}
        if kept.model == PROFILED:
            ways["own"] = (store, None)
        for way, (records, hardware) in ways.items():
            found = validate_kept(model, records, workload, replace(kept, runs=kept.runs[1:]), hardware).to_json()
            for metric in ("ttft", "tpot"):
                found[metric]["noise"] = getattr(noises, metric)
            rows.append({"run": name, "by": way} | {key: found[key] for key in ("ttft", "tpot", "step")})
    return rows


def _spread(ratios: list[float]) -> dict[str, float]:
    p10, median, p90 = np.quantile(ratios, [0.1, 0.5, 0.9])
    return {"median": float(median), "p10": float(p10), "p90": float(p90), "number": len(ratios)}


def _text(row: dict[str, float]) -> str:
    return f"{row['median']:.3f}, {row['p10']:.3f} to {row['p90']:.3f}"


def show_second(second: dict[str, Any]) -> None:
    """Print what the second quarter of an hour says of operations and decodes."""
    for model, operations in second["operations"].items():
        for name, row in operations.items():
            print(f"{model}: shipped over own, {name}: {_text(row)}, {row['number']} sizes")
    for model, row in second["decodes"].items():
        print(f"{model}: steady decodes, predicted over real {_text(row)}, {row['number']} batches")
    print(f"the second host takes {second['host_slowdown']:.2f} times as long to launch")


def show_load(row: dict[str, Any]) -> None:
    """Print the errors of one load."""
    errors = []
    for metric in ("ttft", "tpot"):
        mean_error, mape, noise = (row[metric][key] for key in ("mean_error", "mape", "noise"))
        errors.append(f"{metric.upper()} mean {mean_error:+.1%}, MAPE {mape:.1%}, noise {noise:.1%}")
    steps = f"steps median {row['step']['median_error']:.1%}, together {row['step']['mean_error']:+.1%}"
    print(f"{row['run']} by {row['by']}: {'; '.join(errors)}; {steps}")


def main() -> None:
    """Judge, print, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(RUNS / "records.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        store = Store.open(f"{folder}/db")
        serving = read_runs(RUNS / f"{PROFILED}.FLASH_ATTN.default.medium.json.xz").serving
        own = load_latency_model(store, find_model(PROFILED), serving)
        models = (PROFILED, OTHER)
        tables = f"{folder}/imported"
        shutil.copytree(DATA / HARDWARE, tables, ignore=shutil.ignore_patterns(*OWN_FILES))
        ways = {"imported": tables, "shipped": HARDWARE}
        predicted = {
            f"{m}, {way}": load_latency_model(model=find_model(m), serving=serving, hardware=hardware)
            for m in models
            for way, hardware in ways.items()
        }
        found: dict[str, Any] = {"schema": 1, "operations": compare_operations(own, predicted[f"{PROFILED}, imported"])}
        for name, row in found["operations"].items():
            print(f"imported over own, {name}: {_text(row)}, {row['number']} sizes")
        predicted[f"{PROFILED}, own"] = own
        found["decodes"] = {way: judge_decodes(way.partition(",")[0], latency) for way, latency in predicted.items()}
        for name, row in found["decodes"].items():
            print(f"steady decodes, {name}: predicted over real {_text(row)}, {row['number']} batches")
        found["prompts"] = {way: judge_prompts(way.partition(",")[0], latency) for way, latency in predicted.items()}
        for name, row in found["prompts"].items():
            texts = (f"{where} {_text(spread)}, {spread['number']} prompts" for where, spread in row.items())
            print(f"prompts, {name}: predicted over real {'; '.join(texts)}")
        loads = kept_loads()
        calls = first_launches(loads.values())
        found["launches_ms"] = {
            f"{way}, {m}": _spread([ns / 1e6 for ns in times])
            for way, models in calls.items()
            for m, times in models.items()
            if times
        }
        for name, row in found["launches_ms"].items():
            print(f"launches of the first runs, {name}: {_text(row)} ms, {row['number']} calls")
        found["host_ns"] = host_times(calls)
        print(f"of a model of {HOST_LAYERS} layers, ms: { {way: round(ns / 1e6, 1) for way, ns in found['host_ns'].items()} }")
        found["speeds"] = judge_speeds(loads)
        for row in found["speeds"]:
            errors_text = f"TTFT {row['ttft']:+.1%}, TPOT {row['tpot']:+.1%}"
            print(f"{row['run']} by what ships, host {row['host']} ({row['plain_ms']:.1f} ms): {errors_text}")
        found["loads"] = judge_loads(store, tables, loads)
        found["second"] = judge_second(Path(folder) / "second")
        show_second(found["second"])
        for row in (*found["loads"], *found["second"]["loads"]):
            show_load(row)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
