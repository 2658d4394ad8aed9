"""The page of a search: throughput for each GPU against each user's speed, at every rate simulated, and all candidates."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from dooly.report._page import PALETTE, chart, table, write_page

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from plotly.graph_objects import Figure

    from dooly.searching import Evaluation, FoundCandidate, SearchResult

_CHART_NOTE = """A point is a simulation at one request rate, a line a candidate. Full points meet the limits. Along the dotted
line nothing has more throughput at the same speed. Speed is one over the median time per output token."""
_TABLE_NOTE = """Rates are the highest that meet the limits; those with ≥ were left there, as they cannot be among the best.
Copies bear a demanded rate together, each an equal share of it. Measured and family are shares of the simulated seconds; the rest
is estimated."""


def write_search(result: SearchResult, path: Path) -> None:
    """Write a search as one self-contained HTML page: a Pareto chart, the best candidate's command, and a table of all."""
    settings = _varying(result)
    limits = ", ".join(f"{name.replace('_', ' ').upper()} at most {1e3 * value:g} ms" for name, value in result.limits.items())
    goal = "" if result.demanded is None else f"{result.demanded:g} requests/s, "
    best = result.best
    command = "No candidate meets the limits." if best is None else f"<code>{escape(best.candidate.command)}</code>"
    sections = [
        f"<p>{escape(result.workload)}<br>{goal}{escape(limits)}</p>",
        f"<p>{command}</p>",
        "<h2>Throughput against speed</h2>",
        f'<p class="note">{_CHART_NOTE}</p>',
        chart(_pareto(result, settings), "pareto", height=560, first=True),
        "<h2>Candidates</h2>",
        f'<p class="note">{_TABLE_NOTE}</p>',
        _table(result, settings),
        *_without_rate(result, settings),
    ]
    write_page(f"Search: {', '.join(dict.fromkeys(f.candidate.model.name for f in result.candidates))}", sections, path)


def _varying(result: SearchResult) -> list[str]:
    """Return the settings in which candidates differ."""
    servings = [found.to_json()["serving"] for found in result.candidates]
    varying = [name for name, value in servings[0].items() if any(serving[name] != value for serving in servings)]
    return [*varying, *(["engines"] if len({found.candidate.fleet for found in result.candidates}) > 1 else [])]


def _pareto(result: SearchResult, settings: Sequence[str]) -> Figure:
    from plotly import graph_objects

    figure = graph_objects.Figure()
    groups: dict[str, str] = {}
    points: list[tuple[float, float]] = []
    for found in result.candidates:
        shown = [(speed, each) for each in found.evaluations if (speed := _speed(each)) is not None]
        candidate = found.candidate
        group = f"{candidate.model.name}, {candidate.num_gpus} × {candidate.hardware}"  # noqa: RUF001 - as counts are written
        if not shown:
            continue
        is_first = group not in groups
        color = groups.setdefault(group, PALETTE[len(groups) % len(PALETTE)])
        xy = [(speed, each.output_tokens_per_s / candidate.num_gpus) for speed, each in shown]
        points += xy
        met = [found.best is not None and each.rate <= found.best.rate for _, each in shown]
        figure.add_scatter(
            x=[x for x, _ in xy],
            y=[y for _, y in xy],
            mode="lines+markers",
            name=group,
            legendgroup=group,
            showlegend=is_first,
            line={"color": color, "width": 1},
            opacity=0.75,
            marker={"size": 8, "color": color, "symbol": ["circle" if full else "circle-open" for full in met]},
            hovertext=[_hover(found, each, settings, group) for _, each in shown],
            hoverinfo="text",
        )
    _add_frontier(figure, points)
    if result.best is not None and result.best.best is not None and (speed := _speed(result.best.best)) is not None:
        star: dict[str, Any] = {"size": 18, "symbol": "star", "color": "#eab308", "line": {"width": 1, "color": "#495057"}}
        y = result.best.best.output_tokens_per_s / result.best.candidate.num_gpus
        figure.add_scatter(x=[speed], y=[y], mode="markers", name="best", marker=star, hoverinfo="skip")
    figure.update_xaxes(title="output tokens/s for each user")
    figure.update_yaxes(title="output tokens/s for each GPU", rangemode="tozero")
    return figure


def _speed(evaluation: Evaluation) -> float | None:
    """Return a user's output tokens a second; None where requests have one token."""
    tpot_s = evaluation.latencies_s["tpot_p50"]
    return 1 / tpot_s if tpot_s else None


def _hover(found: FoundCandidate, evaluation: Evaluation, settings: Sequence[str], group: str) -> str:
    latencies = (f"{name.replace('_', ' ').upper()} {_ms(evaluation.latencies_s[name])}" for name in ("ttft_p90", "tpot_p90"))
    lines = [
        group,
        *(f"{name} {found.candidate.shown(name)}" for name in settings),
        f"{evaluation.rate:g} requests/s",
        *latencies,
    ]
    return "<br>".join(map(escape, lines))


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f} ms"


def _add_frontier(figure: Figure, points: Sequence[tuple[float, float]]) -> None:
    """Draw steps through the points that no other exceeds in both throughput and speed."""
    frontier: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not frontier or y > frontier[-1][1]:
            frontier.append((x, y))
    line = {"color": "#868e96", "dash": "dot", "width": 2, "shape": "hv"}
    figure.add_scatter(
        x=[x for x, _ in frontier], y=[y for _, y in frontier], mode="lines", line=line, name="Pareto frontier", hoverinfo="skip"
    )


def _table(result: SearchResult, settings: Sequence[str]) -> str:
    priced = any(found.price_per_gpu_hour is not None for found in result.candidates)
    limits = [f"{name.replace('_', ' ').upper()} ms" for name in result.limits]
    head = [
        "model",
        "hardware",
        *(name.replace("_", " ") for name in settings),
        *(["GPUs"] if result.demanded is None else ["copies", "GPUs in all"]),
        *(["cost/1,000 req"] if priced else []),
        "req/s/GPU",
        "req/s",
        "below",
    ]
    head += ["tok/s/GPU", *limits, "measured", "family", "KV blocks"]
    rows = [_row(found, at, result, settings) for found in result.candidates if (at := found.best) is not None]
    return table(head, rows, numbers=frozenset(head[2:]), best=None if result.best is None else 0)


def _row(found: FoundCandidate, at: Evaluation, result: SearchResult, settings: Sequence[str]) -> list[str]:
    candidate = found.candidate
    return [
        candidate.model.name,
        candidate.hardware,
        *(candidate.shown(name) for name in settings),
        *_devices(found),
        *([] if found.cost_per_1000_requests is None else [f"{found.cost_per_1000_requests:.4g}"]),
        f"{found.goodput_per_gpu:.4g}",
        f"{'' if found.exact else '≥ '}{at.rate:g}",
        "-" if found.below is None else f"{found.below:g}",
        f"{at.output_tokens_per_s / candidate.num_gpus:.0f}",
        *(_ms(at.latencies_s[name]).removesuffix(" ms") for name in result.limits),
        *(f"{at.provenance[source]:.0%}" for source in ("measured", "family")),
        f"{at.num_kv_blocks:,}",
    ]


def _devices(found: FoundCandidate) -> list[str]:
    """Return how many GPUs a candidate takes; where a rate is demanded, how many copies of it bear that, and all their GPUs."""
    if found.copies is None:
        return [str(found.candidate.num_gpus)]
    return [f"{'' if found.exact or found.copies == 1 else '≤ '}{number}" for number in (found.copies, found.total_gpus)]


def _without_rate(result: SearchResult, settings: Sequence[str]) -> list[str]:
    """Return the section of the candidates that do not serve within the limits, by reason."""
    lines = []
    for reason, candidates in result.without_rate:
        names = (
            ", ".join([f.candidate.hardware, *(f"{name} {f.candidate.shown(name)}" for name in settings)]) for f in candidates
        )
        lines.append(f"<details><summary>{len(candidates)} × {escape(reason)}</summary>{escape('; '.join(names))}</details>")  # noqa: RUF001 - as counts are written
    return ["<h2>Without a rate</h2>", *lines] if lines else []
