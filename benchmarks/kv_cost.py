"""What policies cost on this CPU: CritiPrefill's attention beside whole attention, and LaProx's selection beside its closed form.

CritiPrefill computes a prompt's attention for one layer, its choice of blocks included, in turns with whole causal attention,
so that whatever else runs disturbs both; the smallest time of each counts. FLOPs are 4 * head_dim for each pair of a query and a
key. At 16,384 tokens and more its time must fall at least half as much as its FLOPs.

LaProx's closed form, for one layer, is the one that the simulator prices selections by (`dooly/data/kv_selections.json`), in
float32: FLOPs over a rate and bytes over a bandwidth, both measured in turns with it, a product of the logits' shape and a
copy. Its times are CPU time of one thread, which other processes disturb less; time and form must be within 1.5 times of each
other. Beyond either bound the script says so and exits with 1.

    python benchmarks/kv_cost.py [--num-tokens 16384] [--heads 8] [--kv-heads 2] [--head-dim 64] [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from dooly.kv import CritiPrefill, LaProx, LayerInputs, select
from dooly.kv_policy import HeadSizes, KVPolicy
from dooly.predict import selection_work

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTHS = (4096, 8192, 16384)
HIDDEN = 2048
BUDGET = 0.2
LONG, LEAST_SHARE = 16_384, 0.5
"""From so many tokens on, time falls by at least this share of what FLOPs fall by."""
MOST_APART = 1.5
"""How many times a selection's time may be its closed form, or the form its time."""


def smallest(
    runs: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the smallest time of each run in seconds, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: min(taken[1:]) for name, taken in times.items()}


def prefill(args: argparse.Namespace, num_tokens: int) -> dict[str, float]:
    """Return times and FLOPs of whole and sparse attention over a prompt."""
    policy, scaling = CritiPrefill(), args.head_dim**-0.5
    queries = torch.randn(args.heads, num_tokens, args.head_dim)
    keys, values = (torch.randn(args.kv_heads, num_tokens, args.head_dim) for _ in range(2))
    num_blocks = policy.num_critical_blocks(num_tokens, None)

    def whole() -> torch.Tensor:
        inputs = (x[None] for x in (queries, keys, values))
        return scaled_dot_product_attention(*inputs, is_causal=True, scale=scaling, enable_gqa=True)

    def sparse() -> torch.Tensor:
        chosen, _ = policy.select(queries, keys, num_blocks)
        return policy.attend(queries, keys, values, chosen, scaling)

    times = smallest({"whole": whole, "sparse": sparse}, args.repeats)
    per_pair = 4 * args.heads * args.head_dim
    return {
        "num_tokens": num_tokens,
        "whole_flops": per_pair * num_tokens * (num_tokens + 1) // 2,
        "sparse_flops": per_pair * policy.num_pairs(num_tokens, num_blocks),
        "whole_s": times["whole"],
        "sparse_s": times["sparse"],
    }


def selection(args: argparse.Namespace, num_tokens: int) -> dict[str, float]:
    """Return the CPU time of LaProx's selection in one layer on one thread, and what its closed form says."""
    policy = LaProx()
    heads, window, size = args.heads, policy.window_size, args.head_dim
    layer = LayerInputs(
        torch.randn(heads, window, size),
        torch.randn(args.kv_heads, num_tokens, size),
        torch.randn(args.kv_heads, num_tokens, size),
        torch.randn(heads, size, HIDDEN),
        size**-0.5,
    )
    rows = layer.queries.reshape(args.kv_heads, -1, size)
    many = torch.randn(heads * window * num_tokens)
    product = layer.keys.transpose(1, 2)
    runs = {"select": lambda: select(policy, [layer], BUDGET), "product": lambda: rows @ product, "copy": many.clone}
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = smallest(runs, 6 * args.repeats, time.process_time)
    torch.set_num_threads(num_threads)
    rate = 2 * heads * window * num_tokens * size / times["product"]
    bandwidth = 2 * many.nbytes / times["copy"]
    work = selection_work(KVPolicy("laprox", BUDGET), HeadSizes(heads, args.kv_heads, size, HIDDEN), num_tokens, "float32")
    closed = work.float32_flops / rate + work.bytes / bandwidth
    found = {"num_tokens": num_tokens, "flops": work.float32_flops, "bytes": work.bytes}
    return {**found, "closed_form_s": closed, "measured_s": times["select"]}


def beyond_bounds(document: dict[str, Any]) -> list[str]:
    """Return what of a result lies beyond the bounds, a line each."""
    found = []
    for row in document["prefill"]:
        fewer, faster = row["whole_flops"] / row["sparse_flops"], row["whole_s"] / row["sparse_s"]
        if row["num_tokens"] >= LONG and faster < LEAST_SHARE * fewer:
            found.append(
                f"CritiPrefill, {row['num_tokens']:,} tokens: {faster:.2f}x faster by {fewer:.2f}x fewer FLOPs, "
                f"less than {LEAST_SHARE:g} of it"
            )
    for row in document["selection"]:
        ratio = row["measured_s"] / row["closed_form_s"]
        if max(ratio, 1 / ratio) > MOST_APART:
            found.append(f"LaProx, {row['num_tokens']:,} tokens: {ratio:.2f} times its closed form, beyond {MOST_APART:g}")
    return found


def main() -> None:
    """Measure and print; write JSON where asked; fail beyond the bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-tokens", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    load = os.getloadavg()[0]
    print(f"{torch.get_num_threads()} threads; load average before the start {load:.1f}")
    with torch.no_grad():
        prefills = [prefill(args, n) for n in args.num_tokens]
        selections = [selection(args, n) for n in args.num_tokens]
    for row in prefills:
        whole, sparse = row["whole_flops"], row["sparse_flops"]
        print(
            f"CritiPrefill, {row['num_tokens']:,} tokens: "
            f"{whole / 1e9:.1f} -> {sparse / 1e9:.1f} GFLOP ({whole / sparse:.2f}x less), "
            f"{row['whole_s']:.2f} -> {row['sparse_s']:.2f} s ({row['whole_s'] / row['sparse_s']:.2f}x faster)"
        )
    for row in selections:
        print(
            f"LaProx, {row['num_tokens']:,} tokens: {1e3 * row['measured_s']:.1f} ms, "
            f"closed form {1e3 * row['closed_form_s']:.1f} ms (ratio {row['measured_s'] / row['closed_form_s']:.2f})"
        )
    sizes = {"heads": args.heads, "kv_heads": args.kv_heads, "head_dim": args.head_dim, "hidden_size": HIDDEN}
    how = {"threads": torch.get_num_threads(), "load_average": load, "repeats": args.repeats}
    document = {**sizes, **how, "prefill": prefills, "selection": selections}
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    if beyond := beyond_bounds(document):
        raise SystemExit("\n".join(beyond))


if __name__ == "__main__":
    main()
