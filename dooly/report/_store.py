"""The page of a store: how well each operation is known, what was measured of it, how steady the machine was, what it cost."""

from __future__ import annotations

from html import escape
from statistics import median
from typing import TYPE_CHECKING

from dooly.report._page import PALETTE, chart, table, write_page
from dooly.report._store_facts import collect

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from plotly.graph_objects import Figure

    from dbstore import Store
    from dooly.report._store_facts import Known, StoreFacts

_ERRORS_NOTE = """Errors are of points that the fit did not see: of whole configurations for families, of single points for
operations that were measured themselves. Nine of ten measurements of such points, each in a pass of its own, are off by no more
than the upper end of a bar."""
_COVERAGE_NOTE = """An interval is right where as many measurements of held-out points lie in it as it says: about nine of ten lie
in one of 90 % that is made of other points' errors. Covered is told from 20 points on. Seconds count where an operation comes
first."""
_DRIFT_NOTE = """Two fixed pieces of work run beside each measurement. Where they take longer than at best, something slowed the
machine down; what was measured then is marked, and counts only where there is nothing else."""
_PASSES_NOTE = """Points are measured in passes spread over the run: a few again, or all where an operation's level moved. A
value is a pass's median over that of the fastest pass at the same point."""
_SHOWN = 24


def write_store(store: Store, path: Path) -> None:
    """Write what a store knows, and how well, as one self-contained HTML page.

    Held-out errors by operation and by family, with the share of held-out points that intervals cover; the points measured;
    drift and disturbances; and the device's seconds spent.

    Args:
        store: An open store; where it is open for writing, it keeps what is fitted for the page.
        path: The file.

    Raises:
        DamagedRecordError: A record is damaged; `dooly db verify` names all that are.
    """
    facts = collect(store)
    info = store.info()
    counts = f"{info.num_records:,} records of {info.num_operations:,} operations, {info.num_samples:,} samples"
    size = f"measured for {info.measuring_s:,.1f} s; {info.size_bytes / 2**20:.1f} MiB"
    sections = [f"<p>{counts}; {size}</p>", *(f"<p>{escape(line)}</p>" for line in facts.notes)]
    drawn = [*_errors(facts), *_steadiness(facts), *_costs(facts)]
    for place, (heading, note, figure, height) in enumerate(drawn):
        shown = chart(figure, f"chart-{place}", height=height, first=not place)
        sections += [f"<h2>{heading}</h2>", f'<p class="note">{note}</p>', shown]
    sections += ["<h2>Families</h2>", _families(facts.known), "<h2>Operations</h2>"]
    sections += [f'<p class="note">{_COVERAGE_NOTE}</p>', _operations(facts.known)]
    write_page(f"Store: {info.place.rstrip('/').rpartition('/')[2]}", sections, path)


def _errors(facts: StoreFacts) -> list[tuple[str, str, Figure, int]]:
    """Return the chart of held-out errors, the worst operations first."""
    from plotly import graph_objects

    errors = [(known.error, known) for known in facts.known if known.error is not None]
    worst = sorted(errors, key=lambda pair: -pair[0])[:_SHOWN]
    if not worst:
        return []
    names = [f"{known.model}: {known.name}" for _, known in worst]
    figure = graph_objects.Figure()
    wide = [100 * max(known.error_p90 or error, error) for error, known in worst]
    middle, bars = [100 * error for error, _ in worst], {"y": names, "orientation": "h", "marker": {"color": PALETTE[0]}}
    figure.add_bar(x=wide, name="90th percentile", opacity=0.35, **bars)
    figure.add_bar(x=middle, name="median", **bars)
    figure.update_layout(barmode="overlay", showlegend=True)
    figure.update_xaxes(title="held-out error, %", rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    return [("Held-out error", _ERRORS_NOTE, figure, 140 + 24 * len(worst))]


def _steadiness(facts: StoreFacts) -> list[tuple[str, str, Figure, int]]:
    """Return the charts of what slowed the machine down: over time, and from pass to pass."""
    from plotly import graph_objects

    found = []
    if facts.drift:
        figure = graph_objects.Figure()
        for place, (device, points) in enumerate(facts.drift.items()):
            times, slower = zip(*points, strict=True)
            marker = {"size": 4, "color": PALETTE[place % len(PALETTE)]}
            figure.add_scatter(x=list(times), y=[100 * value for value in slower], mode="markers", name=device, marker=marker)
        figure.update_layout(showlegend=len(facts.drift) > 1)
        figure.update_xaxes(title="time of measuring, UTC")
        figure.update_yaxes(title="% slower than at best", rangemode="tozero")
        found.append(("Drift", _DRIFT_NOTE, figure, 340))
    if facts.passes:
        figure = graph_objects.Figure()
        for number, values in sorted(facts.passes.items()):
            drawn = {"name": f"pass {number + 1}", "boxpoints": False, "marker": {"color": PALETTE[number % len(PALETTE)]}}
            figure.add_box(y=[100 * value for value in values], **drawn)
        figure.update_layout(showlegend=False)
        figure.update_yaxes(title="% slower than the fastest pass", rangemode="tozero")
        found.append(("Passes", _PASSES_NOTE, figure, 340))
    return found


def _costs(facts: StoreFacts) -> list[tuple[str, str, Figure, int]]:
    """Return the chart of the seconds that measuring each operation took."""
    from plotly import graph_objects

    seconds: dict[str, float] = {}
    for known in facts.known:
        seconds[known.name] = seconds.get(known.name, 0.0) + known.measuring_s
    dearest = [(name, spent) for name, spent in sorted(seconds.items(), key=lambda item: -item[1])[:_SHOWN] if spent]
    if not dearest:
        return []
    names, spent = zip(*dearest, strict=True)
    figure = graph_objects.Figure()
    figure.add_bar(x=list(spent), y=list(names), orientation="h", marker={"color": PALETTE[2]})
    figure.update_xaxes(title="seconds of measuring", rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    return [("Cost", "What measuring took, by operation, over all models.", figure, 140 + 24 * len(names))]


def _families(known: Sequence[Known]) -> str:
    """Return a row a family: its operations, and how well they are known."""
    rows = []
    for family in sorted({each.family for each in known}):
        members = [each for each in known if each.family == family]
        errors = [each.error for each in members if each.error is not None]
        middle, worst = (_percent(median(errors)), _percent(max(errors))) if errors else ("-", "-")
        points, seconds = sum(each.num_points for each in members), sum(each.measuring_s for each in members)
        rows.append([family, str(len(members)), f"{points:,}", middle, worst, f"{seconds:,.1f}"])
    head = ("family", "operations", "points", "error", "worst", "seconds")
    return table(head, rows, numbers=frozenset(head[1:]))


def _operations(known: Sequence[Known]) -> str:
    """Return a row an operation of a model."""
    rows = [
        [
            each.model,
            each.name,
            each.source,
            f"{each.num_points:,}",
            str(each.num_infeasible or ""),
            str(each.num_spoiled or ""),
            _percent(each.error),
            _percent(each.error_p90),
            _percent(each.coverage),
            f"{each.measuring_s:,.1f}",
            each.reach,
        ]
        for each in sorted(known, key=lambda each: (each.model, -(each.error or 0)))
    ]
    numbers = ("points", "infeasible", "disturbed", "error", "90th", "covered", "seconds")
    head = ("model", "operation", "known by", *numbers, "measured up to")
    return table(head, rows, numbers=frozenset(numbers))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
