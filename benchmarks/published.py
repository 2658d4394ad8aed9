"""Trace configurations as model makers publish them, each in a process of its own, and say what each takes.

A configuration is a folder with a `config.json`. Each is traced as on the first of the GPUs named that vLLM runs it on, if need
be with a cache of full precision; what is refused is listed with its reason on the first. Parameters are counted from the
operations: those of a quantised layer by its product, scales left out; their bytes are those of all weights and scales as they
lie in memory, and those of a checkpoint are these without what an engine keeps twice. Seconds are wall time, whatever else the
machine does.

Run `python benchmarks/published.py FOLDER [NAME ...] [--hardware NAME ...] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from itertools import combinations
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly.dtypes import item_bytes

if TYPE_CHECKING:
    from dooly.tracing import TracedModel, TracedOperation

TIMEOUT_S = 300
_PLACE = re.compile(r"\S*/(?:site-packages/|(?=(?:dooly|passes)/))")
"""Where packages lie on this machine, in front of a file's name."""
ONE_TOKEN = {"num_tokens": 1, "num_reqs": 1, "query_key_pairs": 0, "kv_tokens": 0}


def main() -> None:
    """Trace the configurations in a folder, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="folders within it; all without")
    parser.add_argument("--hardware", nargs="+", default=["h200", "b200"], metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(trace_here(options.folder, options.hardware)))
        return
    known = sorted(path.parent.name for path in options.folder.glob("*/config.json"))
    found: list[dict[str, Any]] = []
    for name in options.names or known:
        found.append(trace_apart(options.folder / name, options.hardware))
        print(_line(found[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{sum('refused' not in row for row in found)} of {len(found)} traced")


def _line(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"{row['configuration']:50} {row['seconds']:5.0f} s  {row['refused']}"
    sizes = (
        f"{row['parameters'] / 1e9:7.1f} B {row['active_parameters'] / 1e9:6.1f} B active {row['parameter_bytes'] / 1e9:7.1f} GB"
    )
    return f"{row['configuration']:50} {row['seconds']:5.0f} s {sizes} {row['kv_bytes_per_token']:7} B a token, {row['hardware']}"


def trace_apart(folder: Path, hardware: list[str]) -> dict[str, Any]:
    """Trace one configuration in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--one", "--hardware", *hardware]
    begin = time.perf_counter()
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"configuration": folder.name, "seconds": TIMEOUT_S, "refused": f"not done after {TIMEOUT_S} s"}
    lines = [line for line in run.stderr.splitlines() if line.strip()] or [f"exit code {run.returncode}"]
    row = json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else {"refused": f"crash: {lines[-1]}"}
    return {"configuration": folder.name, "seconds": round(time.perf_counter() - begin, 1)} | row


def trace_here(folder: Path, hardware: list[str]) -> dict[str, Any]:
    """Trace one configuration, as on the first GPU that takes it; if none does, with a cache of full precision on the first."""
    from dooly.engines import ServingConfig, find_model
    from dooly.engines.vllm import trace_vllm_model
    from dooly.errors import DoolyError

    model, reasons = find_model(str(folder)), []
    for name, cache in [*((name, "auto") for name in hardware), (hardware[0], "bfloat16")]:
        try:
            traced = trace_vllm_model(model, ServingConfig(kv_cache_dtype=cache), hardware=name)
        except DoolyError as error:
            reasons.append(_PLACE.sub("", str(error).replace(f"{folder.name}: ", "")))
        else:
            found = {"hardware": name, "kv_cache_dtype": cache, **describe(traced)}
            return found | {"left_out": _left_out(model.text_config)}
    return {"refused": reasons[0]}


def describe(traced: TracedModel) -> dict[str, Any]:
    """Return what a traced model takes."""
    sizes = _parameter_bytes(traced)
    experts = [op for op in traced.operations if "num_experts" in op.attributes]
    total = sum(_parameters(traced).values())
    inactive = sum(
        op.count
        * (
            op.attributes["num_local_experts"]
            - op.attributes["top_k"] * op.attributes["num_local_experts"] // op.attributes["num_experts"]
        )
        * op.attributes["expert_parameters"]
        for op in experts
    )
    looked_up = [op for op in traced.operations if _looks_up(op)]
    read = {t.parameter for op in traced.operations if not _looks_up(op) for t in op.inputs}
    embedding = sum(_numel(t) for op in looked_up for t in op.inputs if t.is_parameter and t.parameter not in read)
    windowed = [
        op for op in traced.operations if op.attributes.get("sliding_window") or op.attributes.get("attention_chunk_size")
    ]
    full = [op for op in traced.operations if op.stateful and op not in windowed]
    recurrent = [op for op in full if "state_shapes" in op.attributes]
    return {
        "quantization": traced.environment["quantization"],
        "num_rows": len(traced.operations),
        "num_unique": len({op.signature for op in traced.operations}),
        "parameters": total,
        "active_parameters": total - inactive - embedding,
        "parameter_bytes": sum(sizes.values()),
        "checkpoint_bytes": sum(size for name, size in sizes.items() if name not in _copies(traced)),
        "embedding_parameters": embedding,
        "kv_bytes_per_token": _grows_by(full, "kv_tokens"),
        "windowed_kv_bytes_per_token": _grows_by(windowed, "kv_tokens"),
        "state_bytes_per_request": _grows_by(recurrent, "num_reqs") // 2,  # they are read and written
    }


def _grows_by(operations: list[TracedOperation], dim: str) -> int:
    """Return the bytes that operations move for one more of a request dimension."""
    import sympy

    forms = [(op.count, sympy.sympify(op.request_bytes).expand()) for op in operations]
    return int(sum(count * form.coeff(sympy.Symbol(dim)) for count, form in forms))


def _left_out(config: dict[str, Any]) -> list[str]:
    """Return which parts of a checkpoint a trace of its text model leaves out, by the fields of its configuration."""
    heads = [name for name, size in config.items() if re.search(r"mtp|nextn", name) and type(size) is int and size > 0]
    return [name for name in config if name in {"vision_config", "audio_config"}] + heads


def _parameter_bytes(traced: TracedModel) -> dict[str, int]:
    """Return the bytes of each parameter, those of repeated layers together."""
    found: dict[str, int] = {}
    for op in traced.operations:
        for tensor in op.inputs:
            if tensor.parameter is not None:
                size = _numel(tensor) * item_bytes(tensor.dtype) * op.count
                found[tensor.parameter] = max(size, found.get(tensor.parameter, 0))
    return found


def _copies(traced: TracedModel) -> set[str]:
    """Return the parameters that an engine makes of another while it loads, such as the two halves of one, head by head.

    Two stacks of matrices that add up to one matrix of the same operation are such.
    """
    found: set[str] = set()
    for op in traced.operations:
        held = {t.parameter: t for t in op.inputs if t.parameter is not None}
        whole = {_numel(t) for t in held.values() if len(t.shape) == len(("rows", "columns"))}
        stacks = [t for t in held.values() if len(t.shape) > len(("rows", "columns"))]
        for one, other in combinations(stacks, 2):
            if _numel(one) + _numel(other) in whole:
                found |= {str(one.parameter), str(other.parameter)}
    return found


def _parameters(traced: TracedModel) -> dict[str, int]:
    """Return how many parameters each tensor or quantised layer has, those of repeated layers together."""
    import sympy

    found: dict[str, int] = {}
    copies = _copies(traced)
    for op in traced.operations:
        weights = [t for t in op.inputs if t.parameter is not None and t.parameter not in copies]
        if not any(item_bytes(t.dtype) == 1 or t.dtype == "int32" for t in weights):
            found |= {t.parameter: max(_numel(t) * op.count, found.get(t.parameter, 0)) for t in weights if t.parameter}
        elif "num_experts" in op.attributes:
            held = op.attributes["num_local_experts"] * op.attributes["expert_parameters"]
            found[f"{op.module}*"] = op.count * (held + op.attributes["shared_parameters"])
        else:
            flops = sympy.sympify(op.request_flops)
            found[f"{op.module}*"] = op.count * int(flops.subs(ONE_TOKEN)) // 2
    return found


def _looks_up(op: TracedOperation) -> bool:
    """Tell a look-up of rows by index from a product."""
    return op.request_flops == "0" and any(not t.is_parameter and t.dtype in {"int32", "int64"} for t in op.inputs)


def _numel(tensor: Any) -> int:  # noqa: ANN401 - a TracedTensor
    return prod(d.value or 0 for d in tensor.shape)


if __name__ == "__main__":
    main()
