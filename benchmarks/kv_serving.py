"""What KV-cache and prefill policies do to the users of a model: TTFT, TPOT and how many fit, by policy and length of prompts.

Simulated on a device whose measurements ship with Dooly; selecting is estimated by the bytes and launches of its kernels.
    TTFT       mean of a prompt alone, two one after the other
    TPOT       mean of 8 users who wait for their answers of 1,024 tokens, each twice; the others' prompts stand in its way
    fit        requests served at once of as many users as kept tokens and whole answers fill the KV cache: fewer where the last
               prompt, which needs all its blocks until it is computed, finds too few beside them
    users      most users whose mean TPOT stays within the limit, all in the cache at once; from 20 on a multiple of 2

With --uneven: what attention of decodes takes where layers keep a quarter to 2.25 times the mean, or each key/value head is a
request of its own, over what it takes where all read as much; by the same tables.

    python benchmarks/kv_serving.py [--model llama-3.1-8b] [--hardware h200] [--budget 0.2] [--limit-ms 40] [--json FILE]
    python benchmarks/kv_serving.py --uneven
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect_right
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.engines import find_model
from dooly.kv_policy import KEPT_BY, KVPolicy
from dooly.predict import BatchArrays, default_serving, load_latency_model
from dooly.simulation import load_compiled_loop, num_at_once, parse_workload, scheduler_config, simulate

if TYPE_CHECKING:
    from dooly.engines import ServingConfig
    from dooly.predict import LatencyModel
    from dooly.simulation import SimulationResult

LENGTHS = (8192, 16_384, 32_768, 65_536, 130_000)
OUTPUT = 1024
USERS = (*range(20), *range(20, 257, 2))
"""Numbers of users that are tried."""
SHARES = (0.25, 0.4, 0.6, 0.8, 1, 1.2, 1.5, 2.25)
"""What unequal layers keep, in units of the mean."""


class Engine:
    """An engine with a policy."""

    def __init__(self, latency: LatencyModel, serving: ServingConfig, policy: KVPolicy | None, prompt: int) -> None:
        self.latency = latency
        self.config = scheduler_config(replace(serving, kv_policy=policy), latency)
        self.prompt = prompt

    @property
    def num_held(self) -> int:
        """Requests whose kept tokens and answers fill the cache; head-wise pages are half empty at each head's end."""
        policy, size = self.config.kv_policy, self.config.block_size
        kept = self.prompt if policy is None else policy.num_kept(self.prompt)
        num_tokens = kept + OUTPUT - 1 + (0 if policy is None or policy.is_even else (size - 1) / 2)
        return int((self.config.num_kv_blocks - 1) // -(-num_tokens // size))

    def num_fit(self) -> int:
        """Return how many of these are served at once."""
        return num_at_once(self.serve(self.num_held, 2 * self.num_held))

    def serve(self, users: int, requests: int) -> SimulationResult:
        """Serve users who wait for their answers."""
        spec = f"closed:concurrency={users},requests={requests},prompt={self.prompt},output={OUTPUT}"
        return simulate(parse_workload(spec), self.latency, self.config)

    def within(self, users: int, limit_s: float) -> bool:
        """Tell whether so many users have their tokens in time, all of them at once."""
        served = self.serve(users, 2 * users)
        return num_at_once(served) == users and served.summary()["tpot_s"]["mean"] <= limit_s

    def most_users(self, limit_s: float) -> int:
        """Return the most users within a limit, of as many as are held."""
        low, high = 0, bisect_right(USERS, self.num_held)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.within(USERS[middle], limit_s) else (low, middle)
        return USERS[low]


def row(engine: Engine, limit_s: float) -> dict[str, float | int]:
    """Return what users of an engine see."""
    alone, loaded = engine.serve(1, 2).summary(), engine.serve(8, 16).summary()
    return {
        "ttft_s": alone["ttft_s"]["mean"],
        "tpot_alone_s": alone["tpot_s"]["mean"],
        "tpot_s": loaded["tpot_s"]["mean"],
        "fit": engine.num_fit(),
        "users": engine.most_users(limit_s),
    }


def show_uneven(latency: LatencyModel) -> None:
    """Print what unequal layers, and heads apart, make of attention's time; both read as much as even ones."""
    (fitted,) = (fitted for fitted in latency.operations if fitted.work.is_attention)
    family: Any = fitted.latency
    heads, kv_heads = family.shape.num_heads, family.shape.num_kv_heads
    alone = replace(family, shape=replace(family.shape, num_heads=heads // kv_heads, num_kv_heads=1))

    def attention_ns(lengths: list[int], by: Any = family) -> float:  # noqa: ANN401 - what prices attention
        batches = BatchArrays.checked(np.ones((1, len(lengths)), np.int64), np.array([lengths]))
        return float(by.latency_ns(fitted.work, batches)[0])

    for kept in (1638, 6553, 26_000):
        for users in (1, 8, 32, 128):
            even = attention_ns([kept] * users)
            layers = fmean(attention_ns([int(share * kept)] * users) for share in SHARES) / even
            apart = attention_ns([kept] * (kv_heads * users), alone) / even
            told = f"layers unequal {layers:.3f}, heads apart {apart:.3f}"
            print(f"{users:3} users of {kept:6,} tokens: {even / 1e3:6.1f} us a layer; {told}")


def main() -> None:
    """Simulate and print; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--hardware", default="h200")
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--limit-ms", type=float, default=40.0)
    parser.add_argument("--num-tokens", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--uneven", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = find_model(args.model)
    serving = default_serving(model, args.hardware)
    latency = load_latency_model(model=model, serving=serving, hardware=args.hardware)
    if args.uneven:
        show_uneven(latency)
        return
    load_compiled_loop()
    rows: list[dict[str, Any]] = []
    for prompt in args.num_tokens:
        for name in ("none", *KEPT_BY):
            policy = None if name == "none" else KVPolicy(name, args.budget)
            found = row(Engine(latency, serving, policy, prompt), args.limit_ms / 1e3)
            selection_ns = 0.0 if policy is None else latency.selections.latency(policy, prompt).ns
            rows.append({"num_tokens": prompt, "policy": name, **found, "selection_s": selection_ns / 1e9})
            print(
                f"{prompt:>7,} {name:18} TTFT {found['ttft_s']:7.3f} s (selecting {selection_ns / 1e9:6.3f} s), TPOT alone "
                f"{1e3 * found['tpot_alone_s']:5.2f} ms, of 8 users {1e3 * found['tpot_s']:5.2f} ms; {found['fit']:3} fit, "
                f"{found['users']:3} users below {args.limit_ms:g} ms",
                flush=True,
            )
    document = {"model": args.model, "hardware": args.hardware, "budget": args.budget, "limit_ms": args.limit_ms, "rows": rows}
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
