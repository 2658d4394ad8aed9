"""Run the real engine on timed workloads and keep what happened: what simulations are judged by later, anywhere.

    python benchmarks/ground_truth.py smollm2-135m --out DIR --load light=poisson:rate=2,requests=20,prompt=64-256,output=16-64

Starts the engine once, with dummy weights, and serves each load, from light to heavy, `--repeat` times after a warm-up. Every
load becomes a file MODEL.BACKEND.MODE.LOAD.json.xz with each request's times and each step's batch and duration, which
`dooly validate --real` reads; MODEL is `llama-3.1-8b-fp8` with `--quantization fp8`. Loads whose file is there are left out, so a
run that was cut off continues. MODE is `eager`, as Dooly measures, or `default`, as the engine runs by itself: compiled, with
CUDA graphs, scheduling ahead.

`--steps` first runs chosen batches over and over, and keeps every step in MODEL.BACKEND.MODE.steps.json.xz: what a step takes
in that mode, at sizes that a load meets by chance only.
"""

from __future__ import annotations

import argparse
import json
import lzma
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly.catalog import describe_environment
from dooly.engines import ModelSource, ServingConfig, find_model, start_engine
from dooly.engines.vllm import let_engine_choose_model_runner
from dooly.simulation import parse_workload
from dooly.validation import KeptRuns, serve, write_runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dooly.engines import Engine

SPARE, HELD_STEPS = 64, 8
"""Tokens that a held decode may generate, and steps that it is held for, before prompts come beside it and after."""
DEFAULTS = {"enforce_eager": False, "async_scheduling": None}


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--load", action="append", required=True, metavar="NAME=SPEC")
    parser.add_argument("--mode", choices=("eager", "default"), default="eager")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--attention-backend")
    parser.add_argument("--quantization")
    for name in ("max_model_len", "max_num_batched_tokens", "max_num_seqs", "kv_cache_memory_bytes"):
        default = ServingConfig.__dataclass_fields__[name].default
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    return parser.parse_args()


def main() -> None:
    """Start the engine, serve the loads that are not kept yet, keep them."""
    args = arguments()
    model = find_model(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    name = model.name if args.quantization is None else f"{model.name}-{args.quantization}"
    stem = f"{name}.{args.attention_backend or 'auto'}.{args.mode}"
    loads = dict(text.split("=", 1) for text in args.load)
    missing = {name: spec for name, spec in loads.items() if not (args.out / f"{stem}.{name}.json.xz").exists()}
    steps = args.out / f"{stem}.steps.json.xz"
    if not missing and (not args.steps or steps.exists()):
        return
    serving = ServingConfig(
        max_model_len=args.max_model_len,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_num_seqs=args.max_num_seqs,
        kv_cache_memory_bytes=args.kv_cache_memory_bytes,
        attention_backend=args.attention_backend,
        quantization=args.quantization,
        enforce_eager=args.mode == "eager",
        async_scheduling=args.mode != "eager",
        enable_prefix_caching=False,
    )
    engine = start(model, serving, args.mode)
    try:
        # Kernels that are compiled at their first use, for the sizes of the last load, the heaviest: none of that is kept.
        serve(engine, parse_workload([*loads.values()][-1]), repeat=1)
        if args.steps and not steps.exists():
            keep_steps(engine, serving, model, steps)
        for name, spec in missing.items():
            keep(engine, serving, model, spec, args.repeat, args.out / f"{stem}.{name}.json.xz")
    finally:
        engine.close()


def keep(  # noqa: PLR0913, PLR0917 - what a file holds
    engine: Engine, serving: ServingConfig, model: ModelSource, spec: str, repeat: int, path: Path
) -> None:
    """Serve one load, write what happened, and print it in short."""
    runs, machine = serve(engine, parse_workload(spec), repeat)
    environment = describe_environment(engine, serving)
    write_runs(KeptRuns(model.name, spec, serving, environment, engine.num_kv_blocks, machine, runs), path)
    ttft = [round(run.result.summary()["ttft_s"]["mean"], 6) for run in runs]
    row = {"kept": path.name.removesuffix(".json.xz"), "steps": [len(r.steps) for r in runs], "ttft_mean_s": ttft}
    print(json.dumps(row), flush=True)


def keep_steps(engine: Engine, serving: ServingConfig, model: ModelSource, path: Path) -> None:
    """Run batches that decode, prefill, and do both, and write every step of theirs."""
    found = [
        {"contexts": list(contexts), "prefills": list(prefills), "steps": episode(engine, contexts, prefills)}
        for contexts, prefills in episodes(engine, serving)
    ]
    document = {
        "schema": 1,
        "model": model.name,
        "serving": asdict(serving),
        "environment": describe_environment(engine, serving).to_json(),
        "num_kv_blocks": engine.num_kv_blocks,
        "episodes": found,
    }
    aside = path.with_name(f"{path.name}.part")
    aside.write_bytes(lzma.compress(json.dumps(document, separators=(",", ":")).encode()))
    aside.replace(path)
    print(json.dumps({"kept": path.name.removesuffix(".json.xz"), "episodes": len(found)}), flush=True)


def episodes(engine: Engine, serving: ServingConfig) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield contexts of decodes, and prompts that come beside them, as far as they fit the engine."""
    longest = serving.max_model_len - SPARE
    for length in (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048):
        if length <= min(serving.max_num_batched_tokens, longest):
            yield from [((), (length,))] * 4
    for count in (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, serving.max_num_seqs):
        for context in (128, 1024, 3072):
            fits = count * -(-(context + SPARE) // engine.block_size) < engine.num_kv_blocks
            if fits and context <= longest and count <= serving.max_num_seqs:
                yield (context,) * count, ()
    for count in (4, 16, 48, 96, 160):
        for length in (128, 512, 1024, serving.max_num_batched_tokens - count):
            if count < serving.max_num_seqs and 0 < length <= longest:
                yield tuple(64 + 911 * i % max(1, min(2048, longest - 64)) for i in range(count)), (length,)


def episode(engine: Engine, contexts: Sequence[int], prefills: Sequence[int]) -> list[list[Any]]:
    """Hold decodes behind so many tokens for some steps, send prompts beside them, and return every step.

    Of each step: begin and duration in nanoseconds, and place, new and computed tokens of each request that was scheduled in it;
    requests are counted from the decodes on.
    """
    places = {engine.add(engine.prompt(c), SPARE, c - 1): place for place, c in enumerate(contexts)}
    held = HELD_STEPS if contexts else 0
    steps = []
    for number in range(held + max(held, 4)):
        if number == held:
            more = {engine.add(engine.prompt(n), 1): len(contexts) + place for place, n in enumerate(prefills)}
            places |= more
        if not engine.has_unfinished_requests():
            break
        begin = time.perf_counter_ns()
        engine.step()
        steps.append((begin, time.perf_counter_ns() - begin, engine.scheduler_outputs()))
    engine.abort(list(places))
    while engine.has_unfinished_requests():
        engine.step()
    return [
        [begin, duration, [[places[name], *tokens] for out in outputs for name, tokens in engine.work(out).items()]]
        for begin, duration, outputs in steps
    ]


def start(model: ModelSource, serving: ServingConfig, mode: str) -> Engine:
    """Start the engine as Dooly measures it, or as it runs by itself."""
    if mode == "eager":
        return start_engine(model, serving)
    let_engine_choose_model_runner()
    return start_engine(model, serving, **DEFAULTS)


if __name__ == "__main__":
    main()
