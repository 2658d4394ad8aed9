"""The page of a simulation, or of two runs beside each other: one file that needs no network."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from dooly.report._page import chart, table, write_page
from dooly.report._run_charts import METRICS, draw_kv_cache, draw_latencies, draw_requests
from dooly.report._step_shares import draw_step_shares, step_shares
from dooly.searching import share_of_limit
from dooly.simulation import SimulationResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dooly.predict import LatencyModel
    from dooly.simulation import FleetResult, ReplicaResult, RequestTimes, SchedulerConfig, StepLog

_STATISTICS = ("mean", "p50", "p90", "p95", "p99")
_SLOWEST = 10
_SHARES_NOTE = """Measured are records of the very operation, family is predicted by others of its kind, estimated goes by bytes.
These are means over 200 steps, spread evenly over the device's time."""


def write_simulation(  # noqa: PLR0913 - what a run came to, and what it ran on
    served: SimulationResult | FleetResult,
    title: str,
    path: Path,
    *,
    limits_s: Mapping[str, float] | None = None,
    steps: StepLog | None = None,
    latency: LatencyModel | None = None,
    config: SchedulerConfig | None = None,
) -> None:
    """Write a served workload as one self-contained HTML page.

    It has the distributions of latencies, requests over time, and the slowest requests; with `steps` and `config`, how full the
    KV cache of a single engine is; with `steps` and `latency`, where the steps' time goes; and what each engine of a fleet did.

    Args:
        served: The served workload.
        title: Its title.
        path: The file.
        limits_s: Latency limits in seconds, as `ttft_p90`, to draw beside what came out.
        steps: The steps, as `simulate` filled them in, of all engines together.
        latency: What priced them.
        config: The scheduler's settings.
    """
    result, replicas = (served, ()) if isinstance(served, SimulationResult) else (served.result, served.replicas)
    runs = {title: result}
    over_time = [chart(draw_requests(runs), "requests", height=320)]
    if steps is not None and config is not None and steps.runs and not replicas:
        over_time.append(chart(draw_kv_cache(steps, config.num_kv_blocks, config.block_size), "kv-cache", height=320))
    sections = [*_latencies(runs, limits_s or {}), "<h2>Over time</h2>", _side_by_side(over_time), *_engines(replicas)]
    if steps is not None and latency is not None and steps.runs:
        figure = draw_step_shares(step_shares(steps, latency, None if config is None else config.speculative))
        sections += [
            "<h2>Where the time goes</h2>",
            f'<p class="note">{_SHARES_NOTE}</p>',
            chart(figure, "operations", height=520),
        ]
    write_page(title, [*sections, *_slowest(result)], path)


def _engines(replicas: Sequence[ReplicaResult]) -> list[str]:
    """Return what each engine of a fleet did: a table, and its requests over time."""
    runs = {f"{place}, {one.role}": one.result for place, one in enumerate(replicas) if one.result is not None}
    if not runs:
        return []
    head = ("engine", "requests", "output tok/s", "TTFT mean ms", "TPOT mean ms", "steps", "preemptions")
    rows = []
    for name, run in runs.items():
        summary = run.summary()
        means = (summary[f"{metric}_s"]["mean"] for metric in ("ttft", "tpot"))
        rate = summary["throughput"]["output_tokens_per_s"]
        cells = [str(len(run.rows)), "-" if rate is None else f"{rate:,.1f}"]
        cells += ["-" if mean is None else f"{1e3 * mean:.1f}" for mean in means]
        rows.append([name, *cells, f"{run.num_steps:,}", f"{run.num_preemptions:,}"])
    drawn = chart(draw_requests(runs), "engines", height=380)
    return ["<h2>Engines</h2>", table(head, rows, numbers=frozenset(head[1:])), drawn]


def write_comparison(runs: Mapping[str, SimulationResult], title: str, path: Path) -> None:
    """Write runs of one workload beside each other, by name, as one self-contained HTML page."""
    over_time = chart(draw_requests(runs), "requests", height=380)
    write_page(title, [*_latencies(runs, {}), "<h2>Over time</h2>", over_time], path)


def _latencies(runs: Mapping[str, SimulationResult], limits_s: Mapping[str, float]) -> list[str]:
    figures = {metric: draw_latencies(runs, metric, limits_s) for metric in METRICS}
    drawn = {metric: figure for metric, figure in figures.items() if figure is not None}
    charts = [chart(figure, metric, height=300, first=not place) for place, (metric, figure) in enumerate(drawn.items())]
    return ["<h2>Latencies</h2>", _summary(runs), *_judged(runs, limits_s), _side_by_side(charts)]


def _side_by_side(charts: list[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _summary(runs: Mapping[str, SimulationResult]) -> str:
    """Return mean and percentiles of each run, a row a metric, and below them what each run served."""
    rows, lines = [], []
    for name, run in runs.items():
        summary = run.summary()
        for metric in METRICS:
            values = [summary[f"{metric}_s"][statistic] for statistic in _STATISTICS]
            if values[0] is None:
                continue
            label = metric.upper() if len(runs) == 1 else f"{metric.upper()}, {name}"
            rows.append([label, *("-" if value is None else f"{1e3 * value:.1f}" for value in values)])
        rates = ", ".join(
            f"{value:,.1f} {key.replace('_per_', '/').replace('_', ' ')}"
            for key, value in summary["throughput"].items()
            if value is not None
        )
        label = "" if len(runs) == 1 else f"{escape(name)}: "
        lines.append(
            f"<p>{label}{len(run.rows)} requests in {summary['duration_s']:.2f} s; {rates}; {run.num_preemptions} preemptions</p>"
        )
    rows.sort(key=lambda row: list(METRICS).index(row[0].partition(",")[0].lower()))
    return table(("ms", *_STATISTICS), rows, numbers=frozenset(_STATISTICS)) + "".join(lines)


def _judged(runs: Mapping[str, SimulationResult], limits_s: Mapping[str, float]) -> list[str]:
    """Return a line for each limit: whether it is met, and by what."""
    lines = []
    for name, limit_s in limits_s.items():
        metric, _, statistic = name.partition("_")
        for run in runs.values():
            value = run.summary()[f"{metric}_s"][statistic]
            judged = "met" if share_of_limit(value, limit_s) <= 1 else "missed"
            shown = "-" if value is None else f"{1e3 * value:.1f} ms"
            lines.append(f"<p>{metric.upper()} {statistic.upper()}: {shown}, at most {1e3 * limit_s:g} ms: <b>{judged}</b></p>")
    return lines


def _slowest(result: SimulationResult) -> list[str]:
    """Return the requests that waited longest for their first token, and those whose tokens came slowest."""
    waited = sorted(result.rows, key=lambda row: (row.arrival_s - row.first_token_s, row.request_id))[:_SLOWEST]
    slow = [row for row in result.rows if row.num_output_tokens > 1]
    slow.sort(key=lambda row: (-_tpot_s(row), row.request_id))
    tables = [
        f"<section><h2>{title}</h2>{_requests(rows)}</section>"
        for title, rows in (("Longest to first token", waited), ("Slowest tokens", slow[:_SLOWEST]))
        if rows
    ]
    return [_side_by_side(tables)]


def _tpot_s(row: RequestTimes) -> float:
    return (row.finish_s - row.first_token_s) / (row.num_output_tokens - 1)


def _requests(rows: list[RequestTimes]) -> str:
    head = ("request", "arrival s", "prompt", "output", "waited ms", "TTFT ms", "TPOT ms", "E2E ms")
    cells = [
        [
            str(row.request_id),
            f"{row.arrival_s:.2f}",
            str(row.num_prompt_tokens),
            str(row.num_output_tokens),
            f"{1e3 * (row.scheduled_s - row.arrival_s):.1f}",
            f"{1e3 * (row.first_token_s - row.arrival_s):.1f}",
            f"{1e3 * _tpot_s(row):.1f}" if row.num_output_tokens > 1 else "-",
            f"{1e3 * (row.finish_s - row.arrival_s):.1f}",
        ]
        for row in rows
    ]
    return table(head, cells, numbers=frozenset(head))
