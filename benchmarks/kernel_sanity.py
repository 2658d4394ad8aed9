"""Check single kernels: a device's bandwidth and large bf16 products, then what the latency model says of the same.

    python benchmarks/kernel_sanity.py llama-3.1-8b --device cuda --out kernels.json
    python benchmarks/kernel_sanity.py llama-3.1-8b --db PATH --out kernels.json

The first call measures, with the timer that profiles use and, beside it, by the host's clock around many calls: a copy, and the
products of the model's linear layers. The second needs no device: it adds what a latency model fitted to the store predicts for
those products, and the bandwidth at which decode attention reads its KV cache, beside that of the copy.
"""

from __future__ import annotations

import argparse
import json
import time
from math import ceil
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from dooly.engines import ModelSource, ServingConfig, find_model

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

NUM_TOKENS = {"cuda": (1, 8, 64, 256, 700, 1400, 1900), "cpu": (72, 100)}
COPY_BYTES = {"cuda": 4 << 30, "cpu": 64 << 20}
DECODES = {"cuda": ((32, 4000), (128, 2000)), "cpu": ((4, 180),)}
ROUNDS = 20


def products(model: ModelSource) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of a model's linear layers."""
    hidden, inner, heads = (model.config[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads"))
    size = model.config.get("head_dim") or hidden // heads
    groups = model.config.get("num_key_value_heads", heads)
    return {
        "gate_up_proj": (hidden, 2 * inner),
        "down_proj": (inner, hidden),
        "qkv_proj": (hidden, (heads + 2 * groups) * size),
        "o_proj": (heads * size, hidden),
    }


def measure(model: ModelSource, kind: str) -> dict[str, Any]:
    """Measure a copy, and each product over weights that together exceed twice the last-level cache."""
    import torch

    from dooly.device import cache_bytes

    device = torch.device(kind)
    source = torch.empty(COPY_BYTES[kind], dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copied = timed([lambda: target.copy_(source)], device)
    rows = []
    for name, (inputs, outputs) in products(model).items():
        copies = ceil(2 * cache_bytes(kind) / (2 * inputs * outputs)) + 1
        weights = [torch.randn(outputs, inputs, dtype=torch.bfloat16, device=device) for _ in range(copies)]
        for num_tokens in NUM_TOKENS[kind]:
            x = torch.randn(num_tokens, inputs, dtype=torch.bfloat16, device=device)
            found = timed([lambda w=w, x=x: torch.nn.functional.linear(x, w) for w in weights], device)
            tflops = 2e-3 * num_tokens * inputs * outputs / found["latency_ns"]
            rows.append({"module": name, "num_tokens": num_tokens, **found, "tflops": tflops})
    name = torch.cuda.get_device_name() if kind == "cuda" else "cpu"
    copy_gb_per_s = 2 * COPY_BYTES[kind] / copied["latency_ns"]
    return {
        "schema": 1,
        "model": model.name,
        "device_kind": kind,
        "device": name,
        "copy_gb_per_s": copy_gb_per_s,
        "products": rows,
    }


def timed(calls: list[Callable[[], object]], device: torch.device) -> dict[str, Any]:
    """Return the median time of the calls by the profiles' timer, and their mean by the host's clock around many rounds."""
    import torch

    from dooly.measure import Call, timer_for

    prepared = timer_for(device).prepare([Call(("product", ()), call) for call in calls])
    samples = [ns for _ in range(ROUNDS) for ns in prepared.time_ns() if ns is not None]
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    begin = time.perf_counter_ns()
    for _ in range(ROUNDS):
        for call in calls:
            call()
    wait()
    host_ns = (time.perf_counter_ns() - begin) / (ROUNDS * len(calls))
    return {"latency_ns": median(samples), "host_clock_ns": host_ns, "timing": "+".join(sorted(set(prepared.timings)))}


def compare(model: ModelSource, found: dict[str, Any], db: Path, serving: ServingConfig) -> dict[str, Any]:
    """Add what a latency model predicts for the products, and the bandwidth that it gives decode attention."""
    from dbstore import Store
    from dooly.batch import Batch
    from dooly.predict import load_latency_model

    latency = load_latency_model(Store.open(db), model, serving)
    layers = model.config["num_hidden_layers"]

    def seconds(batch: Batch, module: str) -> float:
        breakdown = latency.step(batch).breakdown_s
        return sum(s for path, s in breakdown.items() if path.endswith(module)) / layers

    for row in found["products"]:
        predicted_ns = 1e9 * seconds(Batch((row["num_tokens"],), (0,), 1), f".{row['module']}")
        row |= {"predicted_ns": predicted_ns, "error": predicted_ns / row["latency_ns"] - 1}
    heads = model.config.get("num_key_value_heads", model.config["num_attention_heads"])
    size = model.config.get("head_dim") or model.config["hidden_size"] // model.config["num_attention_heads"]
    decodes = []
    for num_reqs, context in DECODES[found["device_kind"]]:
        attention_s = seconds(Batch((1,) * num_reqs, (context,) * num_reqs), ".attn")
        gb_per_s = num_reqs * context * heads * size * 4 / attention_s / 1e9
        decodes.append({"num_reqs": num_reqs, "context": context, "predicted_s": attention_s, "kv_gb_per_s": gb_per_s})
    return found | {"attention_backend": latency.environment.attention_backend, "decode_attention": decodes}


def main() -> None:
    """Measure, or compare with a store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", choices=tuple(NUM_TOKENS), default="cuda")
    parser.add_argument("--db", type=Path, help="compare with the profiles in a store")
    parser.add_argument("--attention-backend")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = find_model(args.model)
    if args.db is None:
        found = measure(model, args.device)
    else:
        serving = ServingConfig(attention_backend=args.attention_backend)
        found = compare(model, json.loads(args.out.read_text()), args.db, serving)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
