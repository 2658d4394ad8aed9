"""Run the real engine on timed workloads and keep what happened: what simulations are judged by later, anywhere.

    python benchmarks/ground_truth.py smollm2-135m --out DIR --load light=poisson:rate=2,requests=20,prompt=64-256,output=16-64

Starts the engine once, with dummy weights, and serves each load, from light to heavy, `--repeat` times after a warm-up. Every
load becomes a file MODEL.BACKEND.MODE.LOAD.json.xz with each request's times and each step's batch and duration, which
`dooly validate --real` reads. Loads whose file is there are left out, so a run that was cut off continues. MODE is `eager`, as
Dooly measures, or `default`, as the engine runs by itself: compiled, with CUDA graphs, scheduling ahead.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dooly.engines import ModelSource, ServingConfig, find_model
from dooly.engines.vllm import VllmEngine, let_engine_choose_model_runner
from dooly.measure import describe_environment
from dooly.simulation import parse_workload
from dooly.validation import KeptRuns, serve, write_runs

DEFAULTS = {"enforce_eager": False, "async_scheduling": None}


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--load", action="append", required=True, metavar="NAME=SPEC")
    parser.add_argument("--mode", choices=("eager", "default"), default="eager")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--attention-backend")
    for name in ("max_model_len", "max_num_batched_tokens", "max_num_seqs", "kv_cache_memory_bytes"):
        default = ServingConfig.__dataclass_fields__[name].default
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    return parser.parse_args()


def main() -> None:
    """Start the engine, serve the loads that are not kept yet, keep them."""
    args = arguments()
    model = find_model(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = f"{model.name}.{args.attention_backend or 'auto'}.{args.mode}"
    loads = dict(text.split("=", 1) for text in args.load)
    missing = {name: spec for name, spec in loads.items() if not (args.out / f"{stem}.{name}.json.xz").exists()}
    if not missing:
        return
    serving = ServingConfig(
        max_model_len=args.max_model_len,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_num_seqs=args.max_num_seqs,
        kv_cache_memory_bytes=args.kv_cache_memory_bytes,
        attention_backend=args.attention_backend,
    )
    engine = start(model, serving, args.mode)
    try:
        # Kernels that are compiled at their first use, for the sizes of the last load, the heaviest: none of that is kept.
        serve(engine, parse_workload([*loads.values()][-1]), repeat=1)
        for name, spec in missing.items():
            keep(engine, serving, model, spec, args.repeat, args.out / f"{stem}.{name}.json.xz")
    finally:
        engine.close()


def keep(  # noqa: PLR0913, PLR0917 - what a file holds
    engine: VllmEngine, serving: ServingConfig, model: ModelSource, spec: str, repeat: int, path: Path
) -> None:
    """Serve one load, write what happened, and print it in short."""
    runs, others_cores = serve(engine, parse_workload(spec), repeat)
    environment = describe_environment(engine, serving)
    write_runs(KeptRuns(model.name, spec, serving, environment, engine.num_kv_blocks, others_cores, runs), path)
    ttft = [round(run.result.summary()["ttft_s"]["mean"], 6) for run in runs]
    row = {"kept": path.name.removesuffix(".json.xz"), "steps": [len(r.steps) for r in runs], "ttft_mean_s": ttft}
    print(json.dumps(row), flush=True)


def start(model: ModelSource, serving: ServingConfig, mode: str) -> VllmEngine:
    """Start the engine as Dooly measures it, or as it runs by itself."""
    if mode == "eager":
        return VllmEngine(model, serving)
    let_engine_choose_model_runner()
    return VllmEngine(model, serving, **DEFAULTS)


if __name__ == "__main__":
    main()
