"""How much of profiling several models is one and the same: operations per model, shared with which, and what sharing saves.

Every model is traced at full size (in a process of its own, as vLLM runs it on this machine), and its sweep is planned as `dooly
profile` plans it, whole layers and the step's own time included. Measured alone, each model pays for all of its points; measured
together, each (operation, point) is paid for once. Beside the number of points, they are weighed by the closed forms of their
work: FLOPs, and least memory traffic. No latency enters.

Run `python benchmarks/redundancy.py [MODEL ...] [--json FILE] [--html FILE]`; without models, the twelve reference models.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dooly.engines import ServingConfig, find_model
from dooly.tracing import TracedModel

REFERENCE = (
    "llama-3.1-8b", "llama-3.1-70b", "mistral-7b-v0.3", "qwen2.5-7b", "qwen2.5-32b", "deepseek-r1-distill-qwen-32b", "phi-4",
    "gemma-2-9b", "command-r7b", "qwen3-30b-a3b", "deepseek-v2-lite", "gpt-oss-20b",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sweep:
    """What measuring one operation takes."""

    points: int
    """Points of its sweep, each measured in several passes."""
    flops: float
    """Floating-point operations of all points, each run once."""
    size_bytes: float
    """Least memory traffic of all points, each run once."""


def main() -> None:
    """Trace the models that the command line names, and print what they share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=list(REFERENCE))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the share matrix as a heat map")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        from dooly.catalog import trace_operations

        print(json.dumps(trace_operations(find_model(options.models[0]), ServingConfig()).to_json()))
        return
    sweeps = {name: sweeps_of(traced_apart(name)) for name in options.models}
    result = compare(sweeps)
    report(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.html:
        draw(result, options.html)


def traced_apart(name: str) -> TracedModel:
    """Trace a model in a process of its own: an engine's caches of one model must not shape the next."""
    output = subprocess.run([sys.executable, __file__, name, "--one"], check=True, capture_output=True, text=True).stdout
    return TracedModel.from_json(json.loads(output.splitlines()[-1]))


def sweeps_of(traced: TracedModel) -> dict[str, Sweep]:
    """Return what measuring each operation of a model takes, by signature, on an empty store."""
    from dooly.measure import PASSES, plan_tasks
    from dooly.predict import BatchArrays, OperationWork

    found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for task in plan_tasks(traced.operations, ServingConfig(), lambda _signature, _point: PASSES - 1):
        batches = BatchArrays.of([task.batch])
        for operation in task.missing:
            flops, size_bytes = OperationWork(operation).cost(batches) if operation.stage != "engine" else ((0.0,), (0.0,))
            sums = found[operation.signature]
            found[operation.signature] = [sums[0] + 1, sums[1] + float(flops[0]), sums[2] + float(size_bytes[0])]
    return {signature: Sweep(int(points), flops, size) for signature, (points, flops, size) in found.items()}


def compare(sweeps: dict[str, dict[str, Sweep]]) -> dict[str, Any]:
    """Return the table: a row for each model, the matrix of shared operations, and what sharing saves in all."""
    together: dict[str, Sweep] = {}
    rows = []
    for name, own in sweeps.items():
        others = {other: len(own.keys() & theirs.keys()) for other, theirs in sweeps.items() if other != name}
        rows.append(
            {
                "model": name,
                "operations": len(own),
                "shared": len({s for s in own for other, theirs in sweeps.items() if other != name and s in theirs}),
                "new": len(own.keys() - together.keys()),
                "points": sum(s.points for s in own.values()),
                "new_points": sum(s.points for signature, s in own.items() if signature not in together),
                "shared_with": {other: count for other, count in others.items() if count},
            }
        )
        together |= own
    alone = [s for own in sweeps.values() for s in own.values()]
    saved = {
        "operations": 1 - len(together) / len(alone),
        "points": 1 - sum(s.points for s in together.values()) / sum(s.points for s in alone),
        "flops": 1 - sum(s.flops for s in together.values()) / sum(s.flops for s in alone),
        "bytes": 1 - sum(s.size_bytes for s in together.values()) / sum(s.size_bytes for s in alone),
    }
    return {"models": rows, "unique": len(together), "alone": len(alone), "saved": saved}


def report(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{'model':30} {'operations':>10} {'shared':>6} {'new':>4} {'points':>7} {'new points':>10}  shares most with")
    for row in result["models"]:
        most = sorted(row["shared_with"].items(), key=lambda item: -item[1])[:2]
        with_whom = ", ".join(f"{name} ({count})" for name, count in most)
        print(
            f"{row['model']:30} {row['operations']:10} {row['shared']:6} {row['new']:4} {row['points']:7} {row['new_points']:10}"
            f"  {with_whom}"
        )
    saved = ", ".join(f"{share:.1%} of {name}" for name, share in result["saved"].items())
    print(f"{result['unique']} operations in all instead of {result['alone']}; sharing saves {saved}")


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a heat map of how many operations each pair of models shares."""
    import plotly.graph_objects as go

    names = [row["model"] for row in result["models"]]
    counts = [
        [row["operations"] if name == row["model"] else row["shared_with"].get(name, 0) for name in names]
        for row in result["models"]
    ]
    figure = go.Figure(go.Heatmap(z=counts, x=names, y=names, text=counts, texttemplate="%{text}", colorscale="Blues"))
    title = f"Operations that two models share: {result['unique']} in all instead of {result['alone']}"
    figure.update_layout(title=title, width=900, height=800, yaxis_autorange="reversed", template="plotly_white")
    figure.write_html(path, include_plotlyjs=True)


if __name__ == "__main__":
    main()
