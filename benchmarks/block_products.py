"""What products in FP8 by blocks of 128 x 128 take beside others, by modules of latent attention timed whole, in one CUDA graph.

    python benchmarks/block_products.py GPUDATA/aiconfigurator/h200_sxm [--hardware h200]

aiconfigurator's tables time each module with its projections in bfloat16 and again in FP8 by blocks. What is the same in both
cancels: the module in bfloat16, less its projections by the family of bfloat16, plus these by another family, predicts the module
in FP8. It tells which family knows what such products take; no row of a real server takes part.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dooly.imports import _aiconfigurator as tables
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._families import without_launches_ns
from dooly.predict._family_features import element_bytes, linear_inputs
from dooly.predict._kinds import LinearLayer

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

HIDDEN, Q_RANK, KV_RANK, ROPE, QK, V = 7168, 1536, 512, 64, 192, 128
"""Widths of the one model that was timed: of its tokens, of queries and caches compressed, and of its heads."""
TABLES = {"decodes": "mla_generation_module", "prefills": "mla_context_module"}
TOKENS = (1, 32, 129, 1025, 8193, 1 << 30)
DATA = Path(__file__).parents[1] / "dooly" / "data"


def product_ns(device: DeviceLatencies, m: Floats, n: float, k: float, dtype: str) -> Floats:
    """Return what products take by the family of an element type; `rule` is what Dooly predicts for blocks."""
    if dtype == "rule":
        blocks, single = (product_ns(device, m, n, k, name) for name in ("fp8_block", "fp8"))
        return without_launches_ns(blocks, single, device.hardware.launches_ns["linear-fp8_block"])
    (family,) = device.families(LinearLayer(1, 1, dtype)) or ()
    return family.predict_ns(*linear_inputs(device.hardware, m, np.full_like(m, n), np.full_like(m, k), element_bytes(dtype)))


def projections_ns(device: DeviceLatencies, m: Floats, heads: Floats, dtype: str, *, expands: bool) -> Floats:
    """Return what all projections of a module take; prefills expand the keys and values of each head as well."""
    total = np.zeros(len(m))
    for number in np.unique(heads):
        at = heads == number
        widths = [(Q_RANK + KV_RANK + ROPE, HIDDEN), (number * QK, Q_RANK), (HIDDEN, number * V)]
        widths += [(number * (QK - ROPE + V), KV_RANK)] if expands else []
        total[at] = sum(product_ns(device, m[at], n, k, dtype) for n, k in widths)
    return total


def main() -> None:
    """Print how far modules in FP8 are predicted by each family, by tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hardware", default="h200")
    args = parser.parse_args()
    device = DeviceLatencies(DATA / args.hardware)
    sizes = ("kernel_source", "kv_cache_dtype", "num_heads", "batch_size", "isl", "step")
    all_off: list[Floats] = []
    for what, name in TABLES.items():
        rows = tables.read_table(args.folder, name, ("gemm_type", *sizes))
        keys = list(zip(*(rows[column].tolist() for column in sizes), strict=True))
        found: dict[str, dict[tuple[object, ...], float]] = {"bfloat16": {}, "fp8_block": {}}
        for key, dtype, latency_ns in zip(keys, rows["gemm_type"], rows.latency_ns, strict=True):
            found[dtype][key] = latency_ns
        both = sorted(found["bfloat16"].keys() & found["fp8_block"].keys(), key=str)
        plain, blocks = (np.array([found[dtype][key] for key in both]) for dtype in found)
        heads, m = (
            np.array([float(value) for value in column]) for column in ([k[2] for k in both], [k[3] * k[4] for k in both])
        )
        others = plain - projections_ns(device, m, heads, "bfloat16", expands=what == "prefills")
        for low, high in pairwise(TOKENS):
            at = (m >= low) & (m < high)
            if not at.any():
                continue
            texts, products = [], (blocks - others)[at]
            for dtype in ("fp8_block", "fp8", "rule"):
                predicted = others + projections_ns(device, m, heads, dtype, expands=what == "prefills")
                off = (predicted - blocks)[at]
                texts.append(f"{dtype} {np.median(off / blocks[at]):+.1%} ({np.median(np.abs(off / products)):.1%} of products)")
            all_off.append(np.abs(off / products))  # of the last, which is the rule
            print(f"{what} of {low} to {int(m[at].max())} tokens, {at.sum()} modules, median error: {', '.join(texts)}")
    print(f"products of all modules by the rule: {np.median(np.concatenate(all_off)):.1%} (median)")


if __name__ == "__main__":
    main()
