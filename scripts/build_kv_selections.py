"""Write what the selections of KV-cache policies cost as closed forms, from traces: `dooly/data/kv_selections.json`.

Each policy's selection is traced in bfloat16 over several shapes of attention. Every kernel of a trace reads its operands and
writes its results; views and numbers cost nothing. Sums over kernels are linear in products of the sizes, whose factors a
least-squares fit finds, exactly but for terms without the number of tokens. CritiPrefill's choice of blocks is no such module,
and is worked out by hand below.

    python scripts/build_kv_selections.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dooly.kv import POLICIES, AttentionShape, Policy, Selection
from dooly.tracing import TracedOperation, evaluate_form, trace

FILE = Path(__file__).parents[1] / "dooly" / "data" / "kv_selections.json"
SHAPES = (
    (64, 4, 2, 16),
    (96, 4, 2, 16),
    (64, 8, 2, 16),
    (64, 8, 4, 16),
    (64, 4, 2, 32),
    (160, 6, 3, 48),
    (48, 8, 8, 8),
    (80, 3, 1, 40),
)
"""Hidden size, query heads, key/value heads, size of a head."""
OTHER_SHAPE = (128, 6, 2, 32)
"""A shape that chose none of the factors, by which `--check` judges them."""
BASES = {
    "kernels": (("1", "num_heads", "num_kv_heads"), ()),
    "flops": (
        ("num_heads*head_dim", "num_heads*head_dim*head_dim", "num_heads*head_dim*hidden_size"),
        ("num_heads*head_dim*hidden_size", "num_heads*head_dim*head_dim*hidden_size", "num_heads*head_dim*head_dim"),
    ),
    "bytes": (
        ("1", "num_heads", "num_kv_heads", "num_heads*head_dim", "num_kv_heads*head_dim", "num_heads*hidden_size"),
        ("1", "num_heads", "num_heads*head_dim", "num_kv_heads*head_dim", "num_heads*head_dim*hidden_size"),
    ),
}
"""Products that what each token costs is made of, then what a prompt costs whatever its length; of kernels, that of a prompt."""
VIEWS = {"view", "unsqueeze", "squeeze", "slice", "select", "t", "transpose", "permute", "expand", "getitem", "_unsafe_view"}
ITEM_BYTES = {"float64": 8, "int64": 8, "float32": 4, "bfloat16": 2, "bool": 1}
CRITIPREFILL = {
    # Extremes of queries and keys read both twice; products of segments and blocks with both extremes, the larger, the mean over
    # a group (six passes in float32 over query heads), then mask, softmax, blend, sort (twelve over key/value heads).
    "kernels": "30",
    "flops": "num_heads*head_dim*num_tokens*num_tokens*0.000244140625",  # 4 / (512 * 32)
    "bytes": "4*(num_heads + num_kv_heads)*head_dim*num_tokens"
    " + num_heads*num_tokens*num_tokens*0.00146484375 + num_kv_heads*num_tokens*num_tokens*0.0029296875",  # 24, 48 / (512 * 32)
}


def traced(policy: Policy, shape: tuple[int, int, int, int]) -> TracedOperation:
    """Return the one operation of a policy's selection at a fifth of a prompt."""
    hidden, heads, kv_heads, size = shape
    module = Selection(policy, 0.2, AttentionShape(hidden, heads, kv_heads, size, 1e4)).bfloat16()
    dims = {"keys": (None, "num_tokens"), "values": (None, "num_tokens")}
    run = trace(module, request_dims=dims)
    window, keys = (torch.randn(rows, tokens, size).bfloat16() for rows, tokens in ((heads, policy.window_size), (kv_heads, 200)))
    run(window, keys, torch.randn_like(keys))
    (operation,) = run.traced.operations
    return operation


def work(operation: TracedOperation, num_tokens: int) -> dict[str, float]:
    """Return kernels, FLOPs and bytes of all kernels of an operation; sizes that the prompt sets count as its length."""
    nodes, edges = operation.canonical["nodes"], operation.canonical["edges"]
    sizes = [_bytes(label, num_tokens) for label in nodes]
    read: dict[int, float] = {}
    for source, target, place in edges:
        if place[:1].isdigit():
            read[target] = read.get(target, 0) + (sizes[source] or 0)
    kernels = [
        at for at, label in enumerate(nodes) if "{" in label and label.split()[0] not in VIEWS and not label.endswith("[]")
    ]
    moved = sum(read.get(at, 0) + (sizes[at] or 0) for at in kernels)
    flops = float(evaluate_form(operation.request_flops, {"num_tokens": num_tokens}))
    return {"kernels": float(len(kernels)), "flops": flops, "bytes": moved}


def _bytes(label: str, num_tokens: int) -> int | None:
    found = re.search(r"(\w+)\[([^\]]*)\]$", label)
    if found is None or found[1] not in ITEM_BYTES:
        return None
    dims = (num_tokens if dim == "request" else int(dim) for dim in filter(None, found[2].split(", ")))
    return ITEM_BYTES[found[1]] * prod(dims)


def named(shape: tuple[int, int, int, int]) -> dict[str, int]:
    """Return a shape by the names that forms have."""
    return dict(zip(("hidden_size", "num_heads", "num_kv_heads", "head_dim"), shape, strict=True))


def forms(policy: Policy) -> dict[str, str]:
    """Return the closed forms of a policy's selection in one layer."""
    operations = [traced(policy, shape) for shape in SHAPES]
    found = {}
    for name, (each, once) in BASES.items():
        low, high = ([work(operation, n)[name] for operation in operations] for n in (10**6, 2 * 10**6))
        slope = (np.array(high) - low) / 10**6
        if name == "kernels":
            found[name] = _fitted(each, np.array(low))
        else:
            fixed = np.array(low) - slope * 10**6
            found[name] = " + ".join(filter(None, (_fitted(each, slope, "*num_tokens"), _fitted(once, fixed))))
    return found


def _fitted(basis: tuple[str, ...], values: np.ndarray[Any, Any], tail: str = "") -> str:
    columns = np.array([[evaluate_form(term, named(shape)) for term in basis] for shape in SHAPES], np.float64)
    scale = columns.max(axis=0)
    factors = np.linalg.lstsq(columns / scale, values, rcond=None)[0] / scale
    kept = [(round(float(factor), 2), term) for factor, term in zip(factors, basis, strict=True) if round(abs(float(factor)), 2)]
    return " + ".join(f"{factor:g}*{term}{tail}" for factor, term in kept).replace("+ -", "- ")


def check(name: str, found: dict[str, str]) -> None:
    """Print how far forms are off at a shape that they were not made by."""
    operation = traced(POLICIES[name], OTHER_SHAPE)
    for num_tokens in (2048, 131_072):
        sizes = named(OTHER_SHAPE) | {"num_tokens": num_tokens}
        ratios = (
            f"{term} {evaluate_form(found[term], sizes) / value:.4f}" for term, value in work(operation, num_tokens).items()
        )
        print(f"{name}, {num_tokens:,} tokens: forms over trace", *ratios)


def main() -> None:
    """Trace, fit and write; or with --check, compare what ships with a trace at another shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        shipped = json.loads(FILE.read_text())
        for name, policy in POLICIES.items():
            if isinstance(policy, Policy):
                check(name, shipped[name])
        return
    found = {name: forms(policy) if isinstance(policy, Policy) else CRITIPREFILL for name, policy in POLICIES.items()}
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
