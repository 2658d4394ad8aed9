from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from dooly.batch import Batch
from dooly.report import cost_operations, draw_flow
from dooly.tracing import layer_counts, trace

if TYPE_CHECKING:
    from types import ModuleType

    from plotly.graph_objects import Figure

    from dooly.tracing import TracedModel

BATCH = Batch((1,) * 4, (16,) * 4)
TIMES = "×"  # noqa: RUF001 - as counts are written


def drawing(traced: TracedModel) -> Figure:
    """Return the drawing of a model, its boxes without a second line."""
    return draw_flow(traced, cost_operations(traced, BATCH), lambda _row: ("", ""))


def test_the_drawing_has_a_box_for_each_call_and_a_way_for_each_edge(residuals: TracedModel) -> None:
    """Each call is a box below what it reads; layers are framed with their count; a residual goes around on the right."""
    layout, (ways, down, around) = drawing(residuals).layout, drawing(residuals).data
    boxes = [note for note in layout.annotations if note.width]
    assert len(boxes) == sum(len(op.calls) for op in residuals.operations) == 10
    assert [note.text for note in layout.annotations if not note.width] == ["<b>layers.0</b><br>once", "<b>layers.1</b><br>once"]
    assert len(layout.shapes) == 2
    assert len(down.x) + len(around.x) == list(ways.x).count(None) == len(residuals.edges) == 11
    assert len(around.x) == 2
    assert [note.y for note in sorted(boxes, key=lambda note: -note.y)] == [-float(depth) for depth in range(10)]
    assert all(box.x + box.width / 2 < layout.width for box in boxes)


def test_no_way_passes_behind_a_box(modules: ModuleType) -> None:
    """A way that went behind a box would seem to end there: each runs outside of every box, from one's edge to another's."""
    module = trace(modules.Branches(), request_dims={"x": ("num_tokens",)})
    module(torch.ones(5, 8))
    figure = drawing(module.traced)
    layout, ways = figure.layout, figure.data[0]
    column, row = (
        size / (axis.range[1] - axis.range[0]) for size, axis in ((layout.width, layout.xaxis), (layout.height, layout.yaxis))
    )
    boxes = [(note.x, note.y, (note.width + 10) / 2 / column, (note.height + 10) / 2 / row) for note in layout.annotations]
    assert len({y for _, y, _, _ in boxes}) < len(boxes)
    points = list(zip(ways.x, ways.y, strict=True))
    for (x0, y0), (x1, y1) in ((start, end) for start, end in pairwise(points) if None not in (*start, *end)):
        for part in (step / 100 for step in range(101)):
            x, y = x0 + part * (x1 - x0), y0 + part * (y1 - y0)
            assert all(abs(x - left) > width - 1e-3 or abs(y - top) > height - 1e-3 for left, top, width, height in boxes)


def test_repeated_layers_show_their_count(residuals: TracedModel) -> None:
    """A layer that stands for several is drawn once with its count."""
    folded = tuple(
        replace(op, placements=tuple((m, 79 if m.startswith("layers.1") else n) for m, n in op.placements))
        for op in residuals.operations
    )
    model = replace(residuals, operations=folded)
    assert layer_counts(model.operations) == {"layers.0": 1, "layers.1": 79}
    texts = [note.text for note in drawing(model).layout.annotations if not note.width]
    assert texts == ["<b>layers.0</b><br>once", f"<b>layers.1</b><br>{TIMES} 79"]


def test_a_table_without_calls_has_no_boxes(residuals: TracedModel) -> None:
    """Operations of before calls were kept make no drawing."""
    old = replace(residuals, operations=tuple(replace(op, calls=()) for op in residuals.operations))
    assert drawing(old).layout.annotations == ()
