"""The page of a simulation: one file that needs no network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from dooly.simulation import SimulationResult


def write_simulation(result: SimulationResult, title: str, path: Path) -> None:
    """Write TTFT and TPOT distributions and a timeline of requests as one self-contained HTML page."""
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    titles = ("Time to first token", "Time per output token", "Requests over time")
    figure = make_subplots(2, 2, specs=[[{}, {}], [{"colspan": 2}, None]], subplot_titles=titles)
    for column, (name, values_s) in enumerate((("TTFT", result.ttft_s()), ("TPOT", result.tpot_s())), start=1):
        figure.add_histogram(x=1e3 * values_s, name=name, showlegend=False, row=1, col=column)
        figure.update_xaxes(title=f"{name} (ms)", row=1, col=column)
        figure.update_yaxes(title="requests", row=1, col=column)
    rows = result.rows
    arrivals, starts, ends = ([getattr(r, f"{name}_s") for r in rows] for name in ("arrival", "scheduled", "finish"))
    for name, begin_s, end_s in (("waiting", arrivals, starts), ("running", starts, ends)):
        times_s, counts = count_over_time(begin_s, end_s)
        figure.add_trace(graph_objects.Scatter(x=times_s, y=counts, name=name, line_shape="hv"), row=2, col=1)
    figure.update_xaxes(title="time (s)", row=2, col=1)
    figure.update_yaxes(title="requests", row=2, col=1)
    figure.update_layout(title=title, template="plotly_white", height=800)
    figure.write_html(path, include_plotlyjs=True)


def count_over_time(begin_s: Sequence[float], end_s: Sequence[float]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the times at which intervals begin or end, sorted and distinct, and how many are open from each on."""
    changes = np.concatenate((np.ones(len(begin_s), np.int64), -np.ones(len(end_s), np.int64)))
    times_s, places = np.unique(np.concatenate((np.asarray(begin_s), np.asarray(end_s))), return_inverse=True)
    steps = np.zeros(len(times_s), np.int64)
    np.add.at(steps, places, changes)
    return times_s, np.cumsum(steps)
