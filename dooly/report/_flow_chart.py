"""The data flow of a traced model as a drawing: operations as boxes from top to bottom, each layer kind framed once.

Method: layers stand below each other in the order they run; within one, the longest way from a source decides how far down a box
stands (networkx's topological generations). A result that the next line of boxes reads goes straight down; one that skips lines,
as a residual does, goes around on the right, in its own lane. None passes behind a box, where it would seem to end: it leaves and
enters a box that has another on its right through the gap between the lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from math import gcd
from typing import TYPE_CHECKING

from dooly.report._trace_facts import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from plotly.graph_objects import Figure

    from dooly.report._costs import CostedOperation
    from dooly.tracing import TracedModel

COLORS = {"stateful": "#ffe8cc", "products": "#d0ebff", "memory": "#f1f3f5"}
"""Fill of a box: stateful operations, matrix products, and what only moves and maps data."""
_BOX_PX, _COLUMN_PX, _ROW_PX, _LANE_PX, _MARGIN_PX = 310, 350, 58, 16, 200
_HALF_BOX = _BOX_PX / _COLUMN_PX / 2
_HALF_HEIGHT = (_ROW_PX - 16) / _ROW_PX / 2
_ROOM_ROWS = 1.6
"""Room above the first and below the last box, for the text shown when the pointer rests on it: a drawing cuts what leaves it."""
_LINE = "#868e96"

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Box:
    """One call in the drawing."""

    row: CostedOperation
    layer: str
    name: str
    count: int
    x: float
    y: float


def kind_of(row: CostedOperation) -> str:
    """Return what an operation is drawn as: a key of `COLORS`."""
    if row.operation.stateful:
        return "stateful"
    return "memory" if row.operation.flops == "0" else "products"


def draw_flow(
    traced: TracedModel, rows: Sequence[CostedOperation], describe: Callable[[CostedOperation], tuple[str, str]]
) -> Figure:
    """Return the drawing of a model's data flow.

    Args:
        traced: The traced model.
        rows: Its operations with their costs.
        describe: Gives a box's second line and the text shown when the pointer rests on it, both as HTML.
    """
    from plotly import graph_objects

    boxes = _place(traced, rows)
    figure = graph_objects.Figure()
    num_lanes = _draw_ways(figure, [(boxes[source], boxes[target]) for source, target in traced.edges])
    left, right = _frame_layers(figure, list(boxes.values()))
    for box in boxes.values():
        line, hover = describe(box.row)
        figure.add_annotation(
            x=box.x, y=box.y, text=f"<b>{box.name}</b><br>{line}", hovertext=hover, showarrow=False, width=_BOX_PX - 12,
            height=_ROW_PX - 26, bgcolor=COLORS[kind_of(box.row)], bordercolor=_LINE, borderpad=4, font={"size": 11},
            hoverlabel={"bgcolor": "white", "bordercolor": _LINE, "font": {"size": 12, "color": "#212529"}},
        )  # fmt: skip
    depth = max((-box.y for box in boxes.values()), default=0)
    lanes = num_lanes * _LANE_PX / _COLUMN_PX
    _lay_out(figure, (left - _MARGIN_PX / _COLUMN_PX, right + lanes + 0.1), (-depth - _ROOM_ROWS, _ROOM_ROWS))
    return figure


def _lay_out(figure: Figure, x_range: Interval, y_range: Interval) -> None:
    """Fix the drawing's scale, so that boxes of a fixed size fit its columns and rows."""
    figure.update_xaxes(visible=False, range=x_range, fixedrange=True)
    figure.update_yaxes(visible=False, range=y_range, fixedrange=True)
    size = {"width": _COLUMN_PX * (x_range[1] - x_range[0]), "height": _ROW_PX * (y_range[1] - y_range[0])}
    figure.update_layout(**size, margin={"l": 0, "r": 0, "t": 0, "b": 0}, template="plotly_white", showlegend=False)


def _draw_ways(figure: Figure, pairs: Sequence[tuple[_Box, _Box]]) -> int:
    """Draw the connections between boxes; return how many lanes the long ones take."""
    ways, ends, num_lanes = _route(pairs)
    # A point of None lifts the pen between two connections.
    lines = ([value for way in ways for value in (*(point[axis] for point in way), None)] for axis in (0, 1))
    figure.add_scatter(**dict(zip("xy", lines, strict=True)), mode="lines", line={"color": _LINE, "width": 1.2}, hoverinfo="skip")
    for symbol, points in ends.items():
        x, y = ([point[axis] for point in points] for axis in (0, 1))
        figure.add_scatter(x=x, y=y, mode="markers", marker={"symbol": symbol, "size": 8, "color": _LINE}, hoverinfo="skip")
    return num_lanes


def _place(traced: TracedModel, rows: Sequence[CostedOperation]) -> dict[str, _Box]:
    """Return each call's box, by the call's name; x counts columns around 0, y counts rows down from 0.

    A layer's boxes stand below those of what ran before it, whether it reads from them or not.
    """
    import networkx as nx

    calls = {
        call.name: (row, *place_of(module, traced), count)
        for row in rows
        for call, (module, count) in zip(row.operation.calls, row.operation.placements, strict=False)
    }
    graph = nx.DiGraph()
    graph.add_edges_from(traced.edges)
    graph.add_nodes_from(calls)
    boxes: dict[str, _Box] = {}
    depth = 0
    for _, names in groupby(_run_order(calls), key=lambda name: (name.partition(".")[0], calls[name][1])):
        for generation in nx.topological_generations(graph.subgraph(names)):
            for column, name in enumerate(generation):
                boxes[name] = _Box(*calls[name], x=column - (len(generation) - 1) / 2, y=-float(depth))
            depth += 1
    return boxes


def _run_order(names: Iterable[str]) -> list[str]:
    """Return calls in the order they run: graph by graph, in each by position."""
    places = [(name, *name.split(".")) for name in names]
    graphs = list(dict.fromkeys(graph for _, graph, _ in places))
    return [name for name, _, _ in sorted(places, key=lambda place: (graphs.index(place[1]), int(place[2])))]


def _route(pairs: Sequence[tuple[_Box, _Box]]) -> tuple[list[list[Interval]], dict[str, list[Interval]], int]:
    """Return the points of each connection, the arrowheads by their symbol, and how many lanes the long ones take."""
    boxes = [box for pair in pairs for box in pair]
    last = {box.y: max(b.x for b in boxes if b.y == box.y) for box in boxes}
    edge = max(last.values(), default=0.0) + _HALF_BOX
    lanes: list[list[Interval]] = []
    ways: list[list[Interval]] = []
    ends: dict[str, list[Interval]] = {"triangle-down": [], "triangle-left": []}
    for source, target in sorted(pairs, key=lambda pair: pair[0].y - pair[1].y):
        if source.y - target.y == 1:
            way = [(source.x, source.y - _HALF_HEIGHT), (target.x, target.y + 0.42)]
            symbol = "triangle-down"
        else:
            out, into = _way_out(source, last[source.y]), _way_in(target, last[target.y])
            lane = _free_lane(lanes, (min(into[0][1], out[-1][1]), max(into[0][1], out[-1][1])))
            x = edge + (lane + 1) * _LANE_PX / _COLUMN_PX
            way = [*out, (x, out[-1][1]), (x, into[0][1]), *into]
            symbol = "triangle-left" if len(into) == 1 else "triangle-down"
        ways.append(way)
        ends[symbol].append(way[-1])
    return ways, ends, len(lanes)


def _way_out(source: _Box, last_x: float) -> list[Interval]:
    """Return where a connection leaves a box for its lane: on the right, or below where another box stands there."""
    if source.x == last_x:
        return [(source.x + _HALF_BOX, source.y - 0.15)]
    x, gap = source.x + _HALF_BOX / 2, source.y - _HALF_HEIGHT - 0.05
    return [(x, source.y - _HALF_HEIGHT), (x, gap)]


def _way_in(target: _Box, last_x: float) -> list[Interval]:
    """Return where a connection enters a box from its lane: on the right, or above where another box stands there."""
    if target.x == last_x:
        return [(target.x + _HALF_BOX + 0.012, target.y + 0.15)]
    x, gap = target.x + _HALF_BOX / 2, target.y + 0.5
    return [(x, gap), (x, target.y + 0.42)]


def _free_lane(lanes: list[list[Interval]], wanted: Interval) -> int:
    """Return the first lane in which nothing overlaps an interval, and take it."""
    for number, taken in enumerate(lanes):
        if all(wanted[1] <= low or wanted[0] >= high for low, high in taken):
            taken.append(wanted)
            return number
    lanes.append([wanted])
    return len(lanes) - 1


def _frame_layers(figure: Figure, boxes: Sequence[_Box]) -> Interval:
    """Draw a frame around each layer with its path and count on the left; return the drawing's left and right edge."""
    left, right = (sign * (max((sign * box.x for box in boxes), default=0.0) + _HALF_BOX) for sign in (-1, 1))
    members: dict[str, list[_Box]] = {}
    for box in boxes:
        if box.layer:
            members.setdefault(f"{box.row.operation.stage} {box.layer}", []).append(box)
    for layer in members.values():
        top, bottom = max(b.y for b in layer) + 0.48, min(b.y for b in layer) - 0.48
        figure.add_shape(
            type="rect",
            x0=left - 0.04,
            x1=right + 0.015,
            y0=bottom,
            y1=top,
            layer="below",
            line={"color": "#ced4da", "dash": "dot"},
        )
        text = f"<b>{layer[0].layer}</b><br>{_times(layer)}"
        figure.add_annotation(x=left - 0.06, y=(top + bottom) / 2, text=text, showarrow=False, xanchor="right", font={"size": 12})
    return left, right


def _times(layer: Sequence[_Box]) -> str:
    count = gcd(*(box.count for box in layer))
    return f"× {count}" if count > 1 else "once"  # noqa: RUF001 - as counts are written
