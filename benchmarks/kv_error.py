"""Which KV-cache policy changes the output of attention least: what the papers lead one to expect, over seeds, with intervals.

Errors are relative, after the output projection, of the 64 tokens that follow a prompt; weights and texts are those of
`dooly kv error`. Two texts: one whose words come in bursts, as in real texts, and one of independent words, in which the prompt's
last tokens foretell nothing. Scores that are pooled over neighbours suit phrases; these texts have none, so those that allow it
run without pooling too.

    python benchmarks/kv_error.py [--model smollm2-135m] [--num-tokens 2048] [--layers 4] [--seeds 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import torch
from scipy import stats

from dooly.engines import find_model
from dooly.kv import (
    AdaKV,
    AttentionShape,
    CriticalAdaKV,
    CriticalKV,
    DefensiveKV,
    LaProx,
    Scope,
    SnapKV,
    capture_attention,
    output_errors,
    structured_llama,
    structured_text,
)

BUDGETS = (0.05, 0.1, 0.2, 0.5)
NUM_LATER = 64
POLICIES = {
    "SnapKV": SnapKV(),
    "Ada-KV": AdaKV(),
    "CriticalKV": CriticalKV(),
    "Critical-Ada-KV": CriticalAdaKV(),
    "DefensiveKV": DefensiveKV(),
    "DefensiveKV by the mean": DefensiveKV(defensive=False),
    "Layer-DefensiveKV": DefensiveKV(scope=Scope.MODEL),
    "LaProx": LaProx(),
    "LaProx by layer": LaProx(scope=Scope.LAYER),
    "LaProx by head": LaProx(scope=Scope.HEAD),
    "SnapKV, no pooling": SnapKV(kernel_size=1),
    "Ada-KV, no pooling": AdaKV(kernel_size=1),
    "CriticalKV, no pooling": CriticalKV(kernel_size=1),
    "Critical-Ada-KV, no pooling": CriticalAdaKV(kernel_size=1),
    "CriticalKV, no pooling, no epsilon": CriticalKV(kernel_size=1, epsilon=0),
}
EXPECTED = (
    ("Ada-KV", "SnapKV", "output"),
    ("Ada-KV", "SnapKV", "window"),
    ("CriticalKV", "SnapKV", "output"),
    ("CriticalKV", "SnapKV", "window"),
    ("Critical-Ada-KV", "Ada-KV", "output"),
    ("Critical-Ada-KV", "Ada-KV", "window"),
    ("Ada-KV, no pooling", "SnapKV, no pooling", "output"),
    ("Ada-KV, no pooling", "SnapKV, no pooling", "window"),
    ("CriticalKV, no pooling", "SnapKV, no pooling", "output"),
    ("CriticalKV, no pooling", "SnapKV, no pooling", "window"),
    ("CriticalKV, no pooling, no epsilon", "SnapKV, no pooling", "output"),
    ("CriticalKV, no pooling, no epsilon", "SnapKV, no pooling", "window"),
    ("Critical-Ada-KV, no pooling", "Ada-KV, no pooling", "output"),
    ("Critical-Ada-KV, no pooling", "Ada-KV, no pooling", "window"),
    ("DefensiveKV", "DefensiveKV by the mean", "worst"),
    ("LaProx", "LaProx by layer", "output"),
    ("LaProx", "LaProx by layer", "window"),
    ("LaProx by layer", "LaProx by head", "output"),
    ("LaProx by layer", "LaProx by head", "window"),
)
"""What is expected to be lower, than what, and in which error: of later tokens, of the worst, or of the window policies go by."""

Found = dict[tuple[str, float, str], list[float]]


def measure(shape: AttentionShape, args: argparse.Namespace, repeats: float) -> Found:
    """Return errors by policy, budget and kind, one a seed."""
    found: Found = defaultdict(list)
    length = args.num_tokens + NUM_LATER
    for seed in range(args.seeds):
        model = structured_llama(shape, args.layers, length, seed)
        layers = capture_attention(model, structured_text(length, seed, repeats))
        with torch.no_grad():
            for error in output_errors(layers, args.num_tokens, POLICIES, BUDGETS, seed):
                found[error.policy, error.budget, "output"].append(error.output)
                found[error.policy, error.budget, "worst"].append(error.worst)
                found[error.policy, error.budget, "window"].append(error.window)
        print(f"repeats {repeats:g}: seed {seed + 1} of {args.seeds}", flush=True)
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % confidence interval, by Student's t."""
    return fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def compare(found: Found) -> list[dict[str, object]]:
    """Return each expectation at each budget: the mean paired difference with its interval, in shares of the output."""
    rows: list[dict[str, object]] = []
    for lower, higher, kind in EXPECTED:
        for budget in BUDGETS:
            pairs = zip(found[lower, budget, kind], found[higher, budget, kind], strict=True)
            mean, half = interval([a - b for a, b in pairs])
            verdict = "holds" if mean + half < 0 else "does not hold" if mean - half > 0 else "undecided"
            row = {"lower": lower, "higher": higher, "error": kind, "budget": budget}
            rows.append(row | {"difference": mean, "half_width": half, "verdict": verdict})
    return rows


def main() -> None:
    """Measure and print; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--num-tokens", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    shape = AttentionShape.of(find_model(args.model))
    document: dict[str, object] = {"model": args.model, "num_tokens": args.num_tokens, "layers": args.layers, "seeds": args.seeds}
    for name, repeats in (("bursts", 0.6), ("independent", 0.0)):
        found = measure(shape, args, repeats)
        rows = [
            {"policy": policy, "error": kind, "budget": budget, "mean": interval(values)[0], "half_width": interval(values)[1]}
            for (policy, budget, kind), values in found.items()
        ]
        document[name] = {"expected": compare(found), "errors": rows}
        print(f"\n{name}: mean over layers, error of later tokens / of the worst / of the window, %")
        for policy in POLICIES:
            means = ([100 * fmean(found[policy, b, kind]) for kind in ("output", "worst", "window")] for b in BUDGETS)
            cells = ("{:6.2f} /{:6.2f} /{:6.2f}".format(*mean) for mean in means)
            print(f"{policy:36}", *cells)
        for row in compare(found):
            print(
                f"{row['lower']} <= {row['higher']} ({row['error']}) at {row['budget']:.0%}: "
                f"{100 * row['difference']:+.3f} ± {100 * row['half_width']:.3f} points: {row['verdict']}"
            )
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
