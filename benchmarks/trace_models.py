"""Trace models at full size, each in a process of its own: seconds, memory, and whether the numbers of the trace are right.

Two numbers are checked against counts that owe nothing to the trace: the bytes of all parameters against the same model built by
Transformers on the meta device, and the FLOPs of one decode step at batch 1 against twice the active parameters, the embedding
lookup apart, plus attention.

Run `python benchmarks/trace_models.py [MODEL ...] [--json FILE]`; without models, all that `dooly models` lists.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly.engines import ServingConfig, find_model, listed_models

if TYPE_CHECKING:
    from dooly.tracing import TracedModel

CONTEXT = 1024
"""Positions that the one decode attends to."""


def main() -> None:
    """Trace the models that the command line names, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(trace_here(options.models[0])))
        return
    names = options.models or [model.name for model in listed_models()]
    found = []
    print(f"{'model':30} {'trace s':>8} {'peak GB':>8} {'rows':>5} {'unique':>6} {'FLOPs ratio':>12} {'parameter bytes':>16}")
    for name in names:
        output = subprocess.run([sys.executable, __file__, name, "--one"], check=True, capture_output=True, text=True).stdout
        row = json.loads(output.splitlines()[-1])
        found.append(row)
        equal = "equal" if row["parameter_bytes"] == row["expected_parameter_bytes"] else "DIFFERENT"
        print(
            f"{name:30} {row['trace_s']:8.1f} {row['peak_gb']:8.2f} {row['num_rows']:5} {row['num_unique']:6} "
            f"{row['flops_ratio']:12.4f} {equal:>16}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def trace_here(name: str) -> dict[str, Any]:
    """Trace one model in this process; imports come before the clock starts."""
    from dooly.engines.vllm import import_vllm, trace_vllm_model

    import_vllm()
    for module in ("vllm.engine.arg_utils", "vllm.v1.sample.sampler", "vllm.model_executor.model_loader.utils", "torch._dynamo"):
        import_module(module)
    model = find_model(name)
    begin = time.perf_counter()
    traced = trace_vllm_model(model, ServingConfig())
    elapsed = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    parameters = count_parameters(traced)
    expected, embedding = expected_parameters(name)
    flops, attention = decode_flops(traced)
    active = sum(parameters.values()) // 2 - inactive_parameters(traced) - embedding
    return {
        "model": name,
        "trace_s": elapsed,
        "peak_gb": peak,
        "num_rows": len(traced.operations),
        "num_unique": len({op.signature for op in traced.operations}),
        "flops": flops,
        "flops_ratio": flops / (2 * active + attention),
        "parameter_bytes": sum(parameters.values()),
        "expected_parameter_bytes": 2 * expected,
        "origins": sorted({d.origin for op in traced.operations for t in (*op.inputs, *op.outputs) for d in t.shape}),
    }


def count_parameters(traced: TracedModel) -> dict[str, int]:
    """Return the bytes of each parameter that the operations read, those of repeated layers together; a tied one counts once."""
    from math import prod

    import torch

    found: dict[str, int] = {}
    for operation in traced.operations:
        for tensor in operation.inputs:
            if tensor.parameter is not None:
                size = prod(d.value or 0 for d in tensor.shape) * getattr(torch, tensor.dtype).itemsize
                found[tensor.parameter] = size * operation.count
    return found


def expected_parameters(name: str) -> tuple[int, int]:
    """Return how many parameters Transformers gives the model, and how many of them serve the embedding lookup only."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(find_model(name).folder)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    embedding = network.get_input_embeddings().weight
    is_tied = network.get_output_embeddings().weight is embedding
    return sum(p.numel() for p in network.parameters()), 0 if is_tied else embedding.numel()


def decode_flops(traced: TracedModel) -> tuple[int, int]:
    """Return the FLOPs of one decode step at batch 1, and those that attention does per cached position."""
    import sympy

    one = {"num_tokens": 1, "num_reqs": 1, "query_key_pairs": CONTEXT, "kv_tokens": CONTEXT}
    flops = attention = 0
    for operation in traced.operations:
        form = sympy.sympify(operation.request_flops)
        flops += operation.count * int(form.subs(one))
        attention += operation.count * int(form.subs(one) - form.subs(one | {"query_key_pairs": 0}))
    return flops, attention


def inactive_parameters(traced: TracedModel) -> int:
    """Return how many parameters belong to experts that one token does not go through."""
    experts = [op for op in traced.operations if "num_experts" in op.attributes]
    return sum(
        op.count * (op.attributes["num_experts"] - op.attributes["top_k"]) * op.attributes["expert_parameters"] for op in experts
    )


if __name__ == "__main__":
    main()
