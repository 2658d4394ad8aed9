"""Other simulators, as their makers publish them, on Dooly's latencies.

    python benchmarks/peers.py vidur CHECKOUT --python PYTHON [--json FILE]
    python benchmarks/peers.py measured CHECKOUT [--json FILE]
    python benchmarks/peers.py mocker --python PYTHON [--json FILE]
    python benchmarks/peers.py aisimulate --python AISIMULATE [--json FILE]
    python benchmarks/peers.py blis CHECKOUT --python BLIS [--json FILE]

PYTHON is the path of an interpreter that has the peer's own requirements, and for Vidur Dooly's as well. Each command prints one
JSON object; what the peer says goes to standard error.

- `vidur`: 500 requests through Vidur's simulator (microsoft/vidur), once by the predictor that `dooly.adapters.vidur` installs,
  and once by Vidur's own random forest, trained on exported profiles.
- `measured`: operations that Vidur's own profile of a Llama with 70 B has on an H100, over four ranks, and Dooly for the same
  device, number of tokens by number of tokens.
- `mocker`: 500 requests through Dynamo's mocker (`pip install ai-dynamo-runtime`) on exported planner arrays, and the same
  through Dooly's own simulator.
- `aisimulate`: the same requests through AISimulate (`pip install aisimulate`, which brings 0.13.0 from NVIDIA's index; PyPI
  has its `0.13.0.dev` versions) on its own tables, since its command takes no others, and through Dooly's simulator, which then
  knows no host either.
- `blis`: the same requests through BLIS (inference-sim/inference-sim, built by `go build`) on fitted coefficients.

LLMServingSim has a script of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import dooly
from dooly.adapters import export_blis, export_planner, export_vidur
from dooly.latency import HostTimes

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
_REQUESTS = 500
_MOCKER = """
import json, sys
from dynamo._core import _normalize_mocker_config as normalised, run_mocker_synthetic_trace_replay as replay
path, prompt, output, requests, concurrency, blocks, tokens, seqs = sys.argv[1], *map(int, sys.argv[2:])
timing = {"type": "external", "provider": "dynamo_profile", "config": {"path": path}}
limits = {"num_gpu_blocks": blocks, "block_size": 16, "max_num_batched_tokens": tokens, "max_num_seqs": seqs}
engine = {"timing_model": timing} | limits
found = replay(prompt, output, requests, extra_engine_args=normalised({"engine": engine}), replay_concurrency=concurrency).summary
print(json.dumps({name: value for name, value in found.items() if isinstance(value, (int, float))}))
"""


def _loaded(name: str, hardware: str, **settings: Any) -> tuple[Any, Any, dooly.LatencyModel]:  # noqa: ANN401 - as ServingConfig has them
    """Return a model, its settings on a device, and its latencies there."""
    model = dooly.find_model(name)
    serving = dooly.default_serving(model, hardware, **settings)
    return model, serving, dooly.load_latency_model(model=model, serving=serving, hardware=hardware)


def _vidur_run(asked: argparse.Namespace, program: Sequence[str], out: Path) -> dict[str, float]:
    """Run Vidur, and return means of its own metrics."""
    command = [
        *(asked.python, "-m", *program),
        *("--replica_config_device", "h100", "--replica_config_model_name", "meta-llama/Meta-Llama-3-8B"),
        *("--request_generator_config_type", "synthetic"),
        *("--synthetic_request_generator_config_num_requests", str(_REQUESTS)),
        *("--interval_generator_config_type", "poisson", "--poisson_request_interval_generator_config_qps", "8"),
        *("--length_generator_config_type", "uniform", "--uniform_request_length_generator_config_max_tokens", "2048"),
        *("--replica_scheduler_config_type", "sarathi", "--no-metrics_config_store_plots"),
        *("--metrics_config_output_dir", str(out), "--metrics_config_cache_dir", str(out / "cache")),
    ]
    places = os.pathsep.join([str(ROOT), str(asked.checkout.resolve())])
    environment = os.environ | {"PYTHONPATH": places, "WANDB_MODE": "disabled"}
    subprocess.run(command, cwd=asked.checkout, env=environment, check=True, stdout=sys.stderr)
    (metrics,) = out.glob("*/request_metrics.csv")
    with metrics.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    names = {"e2e_s": "request_e2e_time", "ttft_s": "prefill_e2e_time", "execution_s": "request_execution_time"}
    means = {name: float(np.mean([float(row[column]) for row in rows])) for name, column in names.items()}
    return {"requests": len(rows)} | {name: round(value, 5) for name, value in means.items()}


def vidur(asked: argparse.Namespace) -> dict[str, Any]:
    """Run Vidur by the installed predictor, and by its own on exported profiles."""
    model, serving, latency = _loaded("llama-3.1-8b", "h100", max_num_batched_tokens=4096, max_num_seqs=128, max_model_len=4096)
    forest, own = "random_forrest_execution_time_predictor_config", "dooly_execution_time_predictor_config"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        export_vidur(latency, model, serving, place / "profiles")
        files = [
            f"--{forest}_{kind}_input_file={place / 'profiles' / name}.csv"
            for kind, name in (("compute", "mlp"), ("attention", "attention"))
        ]
        few = [
            f"--{forest}_{name}" for name in ("num_estimators=100", "max_depth=32", "min_samples_split=2", "k_fold_cv_splits=2")
        ]
        plain = [f"--{forest}_attention_{name}_batching_overhead_fraction=0" for name in ("decode", "prefill")]
        chosen = "--execution_time_predictor_config_type"
        installed = ["dooly.adapters.vidur", chosen, "dummy", f"--{own}_model", "llama-3.1-8b"]
        return {
            "peer": "microsoft/vidur",
            "predictor": _vidur_run(asked, installed, place / "predictor"),
            "profiles": _vidur_run(asked, ["vidur.main", chosen, "random_forrest", *files, *few, *plain], place / "forest"),
        }


def measured(asked: argparse.Namespace) -> dict[str, Any]:
    """Compare operations of one size on one device, as Vidur measured them and as Dooly has them."""
    limits = {"max_num_batched_tokens": 4096, "max_num_seqs": 128, "max_model_len": 4096}
    model, serving, latency = _loaded("llama-3.1-70b", "h100", tensor_parallel_size=4, **limits)
    profile = asked.checkout / "data" / "profiling" / "compute" / "h100" / "meta-llama" / "Llama-2-70b-hf" / "mlp.csv"
    with tempfile.TemporaryDirectory() as folder:
        export_vidur(latency, model, serving, Path(folder))
        ours, theirs = _rows(Path(folder) / "mlp.csv", 4), _rows(profile, 4)
    found: dict[str, Any] = {"peer": "microsoft/vidur", "device": "H100, 4 ranks", "dooly_over_vidur": {}}
    for operation in ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "mlp_act", "input_layernorm"):
        column = f"time_stats.{operation}.median"
        known = {float(row["num_tokens"]): float(row[column]) for row in ours}
        tokens = sorted(known)
        spread = found["dooly_over_vidur"][operation] = {}
        for low, high in ((1, 64), (65, 512), (513, 4096)):
            rows = [(float(row["num_tokens"]), float(row[column])) for row in theirs if low <= float(row["num_tokens"]) <= high]
            ratios = [np.interp(at, tokens, [known[number] for number in tokens]) / took for at, took in rows]
            spread[f"{low}-{high}"] = {"points": len(rows), "median": round(float(np.median(ratios)), 3)}
    return found


def _rows(path: Path, ranks: int) -> list[dict[str, str]]:
    """Return the rows of a profile that are of so many ranks."""
    with path.open(newline="") as handle:
        return [row for row in csv.DictReader(handle) if int(float(row["num_tensor_parallel_workers"])) == ranks]


def mocker(asked: argparse.Namespace) -> dict[str, Any]:
    """Run Dynamo's mocker on planner arrays, and Dooly's simulator on the same requests."""
    prompt, output, concurrency = 1024, 128, 32
    model, serving, latency = _loaded("llama-3.1-8b", "h100", max_num_seqs=256, max_model_len=8192)
    config = dooly.scheduler_config(serving, latency)
    workload = f"closed:concurrency={concurrency},requests={_REQUESTS},prompt={prompt},output={output}"
    requests = dooly.parse_workload(workload)
    own = dooly.simulate(requests, latency, config).summary()
    waits = dooly.simulate(requests, latency, replace(config, async_scheduling=False)).summary()
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "perf_data.npz"
        export_planner(latency, model, serving, arrays)
        numbers = (
            prompt,
            output,
            _REQUESTS,
            concurrency,
            config.num_kv_blocks,
            config.max_num_batched_tokens,
            config.max_num_seqs,
        )
        done = subprocess.run(
            [asked.python, "-c", _MOCKER, str(arrays), *map(str, numbers)], check=True, stdout=subprocess.PIPE, text=True
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "peer": "ai-dynamo-runtime",
        "workload": workload,
        "mocker": _mocked(found),
        "dooly": _means(own),
        "dooly_scheduling_after_each_step": _means(waits),
    }


def aisimulate(asked: argparse.Namespace) -> dict[str, Any]:
    """Run AISimulate on its own tables, and Dooly's simulator without a host on the same requests."""
    prompt, output, concurrency = 1024, 128, 32
    _, serving, latency = _loaded("llama-3.1-8b", "h100", max_num_seqs=256, max_model_len=8192)
    config = replace(dooly.scheduler_config(serving, latency), async_scheduling=False)
    workload = f"closed:concurrency={concurrency},requests={_REQUESTS},prompt={prompt},output={output}"
    own = dooly.simulate(dooly.parse_workload(workload), latency, config, host=HostTimes()).summary()
    scheduler = {"max_batched_tokens": config.max_num_batched_tokens, "max_sequences": config.max_num_seqs}
    engine = {"model": "meta-llama/Meta-Llama-3.1-8B", "hardware": "h100_sxm", "backend": "vllm", "context_length": 8192}
    document = {  # JSON is YAML
        "traffic": {
            "source": {"type": "synthetic", "input_tokens": prompt, "output_tokens": output},
            "load": {"type": "concurrency", "concurrency": concurrency},
            "stop": {"requests": _REQUESTS},
        },
        "engine": engine | {"workers": {"aggregated": {"scheduler": scheduler, "timing": {"type": "default"}}}},
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "asked.yaml").write_text(json.dumps(document))
        command = [asked.python, "predict", "-c", "asked.yaml", "--format", "json", "--output-dir", "found"]
        done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return {
        "peer": "aisimulate",
        "workload": workload,
        "aisimulate": _mocked(json.loads(done.stdout)),
        "dooly_without_host": _means(own),
    }


def _mocked(found: dict[str, Any]) -> dict[str, float]:
    """Return means of what the engine of the mocker and of AISimulate reports."""
    return {
        "requests": found["completed_requests"],
        "ttft_s": round(found["mean_ttft_ms"] / 1e3, 5),
        "tpot_s": round(found["mean_tpot_ms"] / 1e3, 6),
        "duration_s": round(found["duration_ms"] / 1e3, 3),
    }


def blis(asked: argparse.Namespace) -> dict[str, Any]:
    """Run BLIS on exported coefficients, and Dooly's simulator on the same requests."""
    prompt, output, concurrency = 1024, 128, 32
    model, serving, latency = _loaded("llama-3.1-8b", "h100", max_num_seqs=256, max_model_len=8192)
    config = replace(dooly.scheduler_config(serving, latency), async_scheduling=False)
    workload = f"closed:concurrency={concurrency},requests={_REQUESTS},prompt={prompt},output={output}"
    own = dooly.simulate(dooly.parse_workload(workload), latency, config).summary()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        export_blis(latency, model, serving, place / "blis.json")
        facts = json.loads((place / "blis.json").read_text())
        options = facts["options"] | {"hardware-config": str(place / facts["options"]["hardware-config"])}
        for kind, length in (("prompt", prompt), ("output", output)):
            options |= {f"{kind}-tokens": length, f"{kind}-tokens-stdev": 0} | {
                f"{kind}-tokens-{end}": length for end in ("min", "max")
            }
        options |= {"concurrency": concurrency, "num-requests": _REQUESTS, "total-kv-blocks": config.num_kv_blocks}
        options |= {"max-num-batched-tokens": config.max_num_batched_tokens, "max-num-seqs": config.max_num_seqs}
        options |= {
            "model": "meta-llama/llama-3.1-8b-instruct",
            "model-config-folder": model.folder,
            "metrics-path": place / "found",
        }
        command = [asked.python, "run", *(f"--{name}={value}" for name, value in options.items())]
        subprocess.run(command, cwd=asked.checkout, check=True, stdout=sys.stderr)
        found = json.loads((place / "found").read_text())
    return {
        "peer": "inference-sim/inference-sim",
        "workload": workload,
        "fit": facts["error"],
        "blis": {
            "requests": found["completed_requests"],
            "ttft_s": round(found["ttft_mean_ms"] / 1e3, 5),
            "tpot_s": round(found["itl_mean_ms"] / 1e3, 6),
            "duration_s": round(found["vllm_estimated_duration_s"], 3),
        },
        "dooly_scheduling_after_each_step": _means(own),
    }


def _means(summary: dict[str, Any]) -> dict[str, float]:
    return {
        "requests": summary["requests"],
        "ttft_s": round(summary["ttft_s"]["mean"], 5),
        "tpot_s": round(summary["tpot_s"]["mean"], 6),
        "duration_s": round(summary["duration_s"], 3),
        "power_limit_s": round(summary["power_limit_s"], 3),
    }


def main() -> None:
    """Run one peer and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for run, has_checkout in ((vidur, True), (measured, True), (mocker, False), (aisimulate, False), (blis, True)):
        command = commands.add_parser(run.__name__)
        if has_checkout:
            command.add_argument("checkout", type=Path)
        if run is not measured:
            command.add_argument("--python", required=True, type=os.path.abspath)
        command.add_argument("--json", type=Path)
        command.set_defaults(run=run)
    asked = parser.parse_args()
    text = json.dumps(asked.run(asked), indent=2)
    print(text)
    if asked.json is not None:
        asked.json.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
