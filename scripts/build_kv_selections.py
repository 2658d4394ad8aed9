"""Write what the selections of KV-cache policies cost as closed forms, from traces: `dooly/data/kv_selections.json`.

Each policy's selection is traced in bfloat16 over several shapes of attention. Every kernel of a trace reads its operands and
writes its results; views and numbers cost nothing. In float32 the same kernels run, less those that turn bfloat16 into it. Sums
over kernels are linear in products of the sizes, whose factors a least-squares fit finds, exactly but for terms without the
number of tokens. CritiPrefill's choice of blocks goes by segments, and is summed up by hand below, which a test holds to a trace.

    python scripts/build_kv_selections.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dooly.kv import POLICIES, AttentionShape, CritiPrefill, Policy, Selection
from dooly.kv_policy import HeadSizes, KVPolicy
from dooly.predict import selection_work
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
_PRODUCTS = (
    ("num_heads*head_dim", "num_heads*head_dim*head_dim", "num_heads*head_dim*hidden_size"),
    ("num_heads*head_dim*hidden_size", "num_heads*head_dim*head_dim*hidden_size", "num_heads*head_dim*head_dim"),
)
BASES = {
    "kernels": (("1", "num_heads", "num_kv_heads"), ()),
    "bfloat16_flops": _PRODUCTS,
    "float32_flops": _PRODUCTS,
    "bytes": (
        ("1", "num_heads", "num_kv_heads", "num_heads*head_dim", "num_kv_heads*head_dim", "num_heads*hidden_size"),
        ("1", "num_heads", "num_heads*head_dim", "num_kv_heads*head_dim", "num_heads*head_dim*hidden_size"),
    ),
}
"""Products that what each token costs is made of, then what a prompt costs whatever its length; of kernels, that of a prompt."""
VIEWS = {"view", "unsqueeze", "squeeze", "slice", "select", "t", "transpose", "permute", "expand", "getitem", "_unsafe_view"}
_CONVERSION = re.compile(r"_to_copy|prims\.convert_element_type")
ITEM_BYTES = {"float64": 8, "int64": 8, "float32": 4, "bfloat16": 2, "bool": 1}
DTYPES = ("bfloat16", "float32")
"""Element types of queries, keys and values that forms are for; another of two bytes costs what bfloat16 does."""


def critiprefill(item_bytes: int) -> dict[str, str]:
    """Return the closed forms of CritiPrefill's choice of blocks in one layer, and of gathering what is chosen.

    With H query heads, G key/value heads, S segments and B = 16 S blocks of keys: extremes read queries and keys twice; two
    products in float32, with the keys' extremes spread over a group's heads; over H S B the larger of both and its mean, over
    G S B from mask and softmax to the comparisons that follow the top; S B are masks. What segments choose of earlier keys and
    values, `num_gathered_tokens` in sum, is copied once, read and written.
    """
    to_float32 = item_bytes + 4 if item_bytes < 4 else 0  # noqa: PLR2004 - bytes of float32
    queries, keys = 1024 * item_bytes + 5 * item_bytes + to_float32 + 16, 1024 * item_bytes + 32 * item_bytes
    terms = (
        f"{queries}*num_heads*head_dim*num_segments",
        f"{keys + 32 * to_float32}*num_kv_heads*head_dim*num_segments",
        f"{16 * 24}*num_heads*head_dim*num_segments",
        f"{16 * 24}*num_heads*num_segments*num_segments",
        f"{16 * 97}*num_kv_heads*num_segments*num_segments",
        f"{16 * 6}*num_segments*num_segments",
        f"{4 * item_bytes}*num_kv_heads*head_dim*num_gathered_tokens",
    )
    flops = "64*num_heads*head_dim*num_segments*num_segments"
    return {"kernels": str(43 if to_float32 else 40), "float32_flops": flops, "bytes": " + ".join(terms)}


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


def work(operation: TracedOperation, num_tokens: int, dtype: str = "bfloat16") -> dict[str, float]:
    """Return kernels, FLOPs by element type and bytes of all kernels of an operation that was traced in bfloat16.

    Sizes that the prompt sets count as its length. In float32 nothing is turned into it.
    """
    labels = [label.replace("bfloat16[", f"{dtype}[") for label in operation.canonical["nodes"]]
    operands: dict[int, list[int]] = {}
    for source, target, place in sorted(operation.canonical["edges"], key=lambda edge: str(edge[2])):
        if place[:1].isdigit():
            operands.setdefault(target, []).append(source)
    sizes = [_size(label, num_tokens) for label in labels]
    skips = _CONVERSION.match if dtype == "float32" else lambda _: None
    kernels = [at for at, label in enumerate(labels) if _is_kernel(label) and not skips(label)]
    moved = sum(sizes[at].bytes + sum(sizes[source].bytes for source in operands.get(at, ())) for at in kernels)
    products = [at for at in kernels if labels[at].split(maxsplit=1)[0] in {"mm", "bmm"}]
    flops = dict.fromkeys(DTYPES, 0.0)
    for at in products:
        flops[sizes[at].dtype] += 2 * prod(sizes[at].dims) * sizes[operands[at][0]].dims[-1]
    # Exact where products of both types are none: a label does not tell the prompt from what lies before its window.
    total = float(evaluate_form(operation.request_flops, {"num_tokens": num_tokens}))
    exact = {"bfloat16_flops": flops["bfloat16"] if flops["float32"] else total}
    exact["float32_flops"] = total - exact["bfloat16_flops"]
    return {"kernels": float(len(kernels)), **exact, "bytes": float(moved)}


def _is_kernel(label: str) -> bool:
    return "{" in label and label.split(maxsplit=1)[0] not in VIEWS and not label.endswith("[]")


class _Size(NamedTuple):
    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return ITEM_BYTES[self.dtype] * prod(self.dims) if self.dtype else 0


def _size(label: str, num_tokens: int) -> _Size:
    """Return the size that a label ends with; nothing where it has none."""
    found = re.search(r"(\w+)\[([^\]]*)\]$", label)
    if found is None or found[1] not in ITEM_BYTES:
        return _Size("", ())
    return _Size(found[1], tuple(num_tokens if dim == "request" else int(dim) for dim in filter(None, found[2].split(", "))))


def named(shape: tuple[int, int, int, int]) -> dict[str, int]:
    """Return a shape by the names that forms have."""
    return dict(zip(("hidden_size", "num_heads", "num_kv_heads", "head_dim"), shape, strict=True))


def forms(policy: Policy | CritiPrefill) -> dict[str, dict[str, str]]:
    """Return the closed forms of a policy's selection in one layer, by the element type of queries, keys and values."""
    if isinstance(policy, CritiPrefill):
        return {dtype: critiprefill(ITEM_BYTES[dtype]) for dtype in DTYPES}
    operations = [traced(policy, shape) for shape in SHAPES]
    return {dtype: _forms(operations, dtype) for dtype in DTYPES}


def _forms(operations: list[TracedOperation], dtype: str) -> dict[str, str]:
    low, high = ([work(operation, n, dtype) for operation in operations] for n in (10**6, 2 * 10**6))
    found = {}
    for name, (each, once) in BASES.items():
        values, more = (np.array([at[name] for at in rows]) for rows in (low, high))
        slope = (more - values) / 10**6
        fixed = values - slope * 10**6
        terms = (_fitted(each, values),) if not once else (_fitted(each, slope, "*num_tokens"), _fitted(once, fixed))
        if form := " + ".join(filter(None, terms)):
            found[name] = form
    return found


def _fitted(basis: tuple[str, ...], values: np.ndarray[Any, Any], tail: str = "") -> str:
    columns = np.array([[evaluate_form(term, named(shape)) for term in basis] for shape in SHAPES], np.float64)
    scale = columns.max(axis=0)
    factors = np.linalg.lstsq(columns / scale, values, rcond=None)[0] / scale
    kept = [(round(float(factor), 2), term) for factor, term in zip(factors, basis, strict=True) if round(abs(float(factor)), 2)]
    return " + ".join(f"{factor:g}*{term}{tail}" for factor, term in kept).replace("+ -", "- ")


def check(name: str) -> None:
    """Print how far the forms that ship are off at a shape that they were not made by."""
    policy, sizes = POLICIES[name], HeadSizes(*OTHER_SHAPE[1:], OTHER_SHAPE[0])
    assert isinstance(policy, Policy)
    operation = traced(policy, OTHER_SHAPE)
    for num_tokens, dtype in product((2048, 131_072), DTYPES):
        found = selection_work(KVPolicy(name, 0.2), sizes, num_tokens, dtype)._asdict()
        pairs = ((term, found[term], value) for term, value in work(operation, num_tokens, dtype).items() if value)
        ratios = (f"{term} {ours / value:.4f}" for term, ours, value in pairs)
        print(f"{name}, {num_tokens:,} tokens, {dtype}: forms over trace", *ratios)


def main() -> None:
    """Trace, fit and write; or with --check, compare what ships with a trace at another shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        for name, policy in POLICIES.items():
            if isinstance(policy, Policy):
                check(name)
        return
    FILE.write_text(json.dumps({name: forms(policy) for name, policy in POLICIES.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
