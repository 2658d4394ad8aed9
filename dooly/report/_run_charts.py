"""Charts of served workloads, one or two beside each other: latencies, requests over time, KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.report._page import PALETTE
from dooly.simulation._columns import column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from plotly.graph_objects import Figure

    from dooly.simulation import SimulationResult, StepLog

    Floats = npt.NDArray[np.float64]

METRICS = {"ttft": "time to first token", "tpot": "time per output token", "itl": "time between tokens", "e2e": "request latency"}
"""What is drawn, with what it is."""
_BINS = 60
_POINTS = 2_000
"""Points of a line over time, which is as many as a screen shows."""


def draw_latencies(runs: Mapping[str, SimulationResult], metric: str, limits_s: Mapping[str, float]) -> Figure | None:
    """Return the distribution of a metric in each run, in milliseconds; None where none has any.

    Args:
        runs: Served workloads by name.
        metric: One of `METRICS`.
        limits_s: Latency limits in seconds, as `ttft_p90`; a line for each of the metric.
    """
    from plotly import graph_objects

    values = {name: found for name, run in runs.items() if (found := _values_ms(run, metric))[0].size}
    if not values:
        return None
    ours = {name.partition("_")[2]: 1e3 * limit_s for name, limit_s in limits_s.items() if name.startswith(f"{metric}_")}
    highest = max(*(float(ms.max()) for ms, _ in values.values()), *ours.values(), 1e-6)
    edges = np.linspace(0, 1.02 * highest, _BINS + 1)
    figure = graph_objects.Figure()
    for place, (name, (ms, weights)) in enumerate(values.items()):
        counts, _ = np.histogram(ms, edges, weights=weights)
        figure.add_bar(
            x=((edges[:-1] + edges[1:]) / 2).tolist(),
            y=(100 * counts / weights.sum()).tolist(),
            width=float(edges[1]),
            name=name,
            marker={"color": PALETTE[place], "line": {"width": 0}},
            opacity=1 if len(values) == 1 else 0.6,
            hovertemplate="%{x:.1f} ms: %{y:.1f} %<extra></extra>",
        )
    for statistic, limit_ms in ours.items():
        figure.add_vline(
            x=limit_ms, line={"color": "#ef4444", "dash": "dash"}, annotation_text=f"{statistic} limit", annotation_y=1
        )
    figure.update_layout(barmode="overlay", showlegend=len(values) > 1)
    figure.update_xaxes(title=f"{METRICS[metric]} ({metric.upper()}), ms", range=[0, edges[-1]], exponentformat="none")
    figure.update_yaxes(title="% of tokens" if metric == "itl" else "% of requests")
    return figure


def _values_ms(run: SimulationResult, metric: str) -> tuple[Floats, Floats]:
    """Return a metric's values in milliseconds and how often each occurs, both of shape (num_values,)."""
    if metric != "itl":
        values = 1e3 * getattr(run, f"{metric}_s")()
        return values, np.ones(len(values))
    if run.token_gaps is None:
        return np.empty(0), np.empty(0)
    return run.token_gaps.gaps_ns / 1e6, run.token_gaps.counts.astype(np.float64)


def draw_requests(runs: Mapping[str, SimulationResult]) -> Figure:
    """Return how many requests run and wait in each run, over time."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for place, (name, run) in enumerate(runs.items()):
        arrivals, starts, ends = (column(run.rows, f"{key}_s") for key in ("arrival", "scheduled", "finish"))
        for state, begin_s, end_s, dash in (("running", starts, ends, "solid"), ("waiting", arrivals, starts, "dot")):
            times_s, counts = count_over_time(begin_s, end_s)
            kept = _thinned(len(times_s))
            color = 2 * place + (dash == "dot") if len(runs) == 1 else place
            figure.add_scatter(
                x=times_s[kept].tolist(),
                y=counts[kept].tolist(),
                name=state if len(runs) == 1 else f"{name}: {state}",
                line={"shape": "hv", "dash": dash, "color": PALETTE[color % len(PALETTE)]},
            )
    figure.update_xaxes(title="time, s")
    figure.update_yaxes(title="requests", rangemode="tozero")
    return figure


def draw_kv_cache(steps: StepLog, num_kv_blocks: int, block_size: int) -> Figure:
    """Return how much of the KV cache the scheduled requests fill, over time.

    Args:
        steps: The steps of a simulation.
        num_kv_blocks: Blocks of the cache, the engine's own included.
        block_size: Tokens in a block.
    """
    from plotly import graph_objects

    points = [
        (run.ends_ns[step] / 1e9, 100 * run.num_kv_blocks(step, block_size) / num_kv_blocks)
        for run in steps.runs
        for step in dict.fromkeys((0, len(run.ends_ns) - 1))
    ]
    kept = _thinned(len(points))
    figure = graph_objects.Figure()
    figure.add_scatter(
        x=[points[i][0] for i in kept], y=[points[i][1] for i in kept], name="KV cache", line={"color": PALETTE[3]}
    )
    figure.update_xaxes(title="time, s")
    figure.update_yaxes(title=f"% of {num_kv_blocks:,} KV blocks", rangemode="tozero")
    return figure


def _thinned(num_points: int) -> list[int]:
    """Return the places of points to draw, evenly spread where there are more than a screen shows."""
    kept: list[int] = np.unique(np.linspace(0, num_points - 1, min(num_points, _POINTS)).astype(np.int64)).tolist()
    return kept


def count_over_time(begin_s: Sequence[float] | Floats, end_s: Sequence[float] | Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the times at which intervals begin or end, sorted and distinct, and how many are open from each on."""
    changes = np.concatenate((np.ones(len(begin_s), np.int64), -np.ones(len(end_s), np.int64)))
    times_s, places = np.unique(np.concatenate((np.asarray(begin_s), np.asarray(end_s))), return_inverse=True)
    steps = np.zeros(len(times_s), np.int64)
    np.add.at(steps, places, changes)
    return times_s, np.cumsum(steps)
