"""The page of a traced model: data flow, costs and dimensions of a model, in one file that needs no network."""

from __future__ import annotations

import re
from html import escape
from itertools import groupby
from string import Template
from textwrap import wrap
from typing import TYPE_CHECKING

from dooly.report._costs import total_cost
from dooly.report._flow_chart import COLORS, draw_flow, kind_of
from dooly.report._quantity import human
from dooly.report._trace_facts import config_values, spell_dim
from dooly.tracing import layer_counts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from plotly.graph_objects import Figure

    from dooly.report._costs import CostedOperation
    from dooly.tracing import TracedDim, TracedModel, TracedOperation, TracedTensor

_DIM_COLORS = {"config": "#2b8a3e", "request": "#1864ab", "mixed": "#9c36b5"}
_DIM_MARKS = {"config": "", "request": "font-weight: 600;", "mixed": "font-weight: 600; font-style: italic;"}
_DIM_MEANING = {"config": "fixed by the configuration", "request": "set by the requests", "mixed": "set by both"}
_KIND_MEANING = {"stateful": "stateful: costs by the engine's state too", "products": "matrix products", "memory": "no products"}
_COLUMNS = ("operation", "count", "FLOPs", "bytes", "FLOP/B", "inputs", "outputs", "signature")
_SIGNATURE_DIGITS = 8
_HOVER_WIDTH = 72
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { font: 14px/1.45 system-ui, sans-serif; color: #212529; background: white;
 margin: 2rem auto; max-width: 1700px; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
.beside { display: flex; flex-wrap: wrap-reverse; align-items: flex-end; gap: 0 2rem; }
.beside section { max-width: 100%; } .beside .summary { width: 600px; }
.key { display: inline-block; margin-right: 1.2rem; }
.fill { border: 1px solid #868e96; padding: 0 .5rem; print-color-adjust: exact; }
.note { color: #495057; max-width: 48rem; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; border-bottom: 2px solid #adb5bd; position: sticky; top: 0; background: white; }
td { border-bottom: 1px solid #e9ecef; vertical-align: top; }
th, td { padding: .3rem .6rem; }
@media (max-width: 1100px) { table { font-size: 12px; } th, td { padding: .3rem .4rem; } }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th.stage { position: static; background: #f8f9fa; }
tr { break-inside: avoid; }
.class, .type, .value { color: #666d74; }
.tensor { padding-left: 1rem; text-indent: -1rem; }
$dim_styles
</style>
</head>
<body>
<h1>$title</h1>
<p>$environment</p>
<p>One step at <code>--batch $batch</code>: <b>$flops</b>, <b>$bytes</b>, <b>$intensity</b>.$incomplete $layers</p>
<p>Boxes and points: $kind_legend</p>
<div class="beside">
<section>
<h2>Data flow</h2>
<p class="note">A layer stands once for all of its kind, at the first: what follows a later one starts there.<br>
 FLOPs and bytes are of one run.<br>
Rest the pointer on a box for its inputs and outputs.</p>
<div class="scroll">$flow</div>
</section>
<section class="summary">
<h2>Arithmetic intensity</h2>
<p class="note">Work of one run over its least memory traffic.<br>
Operations without matrix products do no work that counts, and are left out.</p>
<div class="scroll">$roofline</div>
<h2>Configuration</h2>
<p class="note">$configuration</p>
</section>
</div>
<h2>Operations</h2>
<p>Dimensions: $dim_legend</p>
<p class="note">Count is all runs in a step, of every layer that shares the operation.
Rest the pointer on FLOPs or bytes for their closed form.</p>
<table><thead><tr>$head</tr></thead>$operations</table>
</body>
</html>
""")


def write_trace(traced: TracedModel, rows: Sequence[CostedOperation], batch: str, path: Path) -> None:
    """Write a traced model as one self-contained HTML page, with FLOPs and bytes in the batch that `batch` spells."""
    total = total_cost(rows)
    incomplete = (
        " Operations marked ? cost by more than the batch tells, and are not in it." if any(not r.cost for r in rows) else ""
    )
    parts = {
        "title": escape(f"{traced.model}: operations of one step"),
        "environment": escape(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in traced.environment.items())),
        "batch": escape(batch),
        "flops": human(total.flops, "FLOP"),
        "bytes": human(total.size_bytes, "B"),
        "intensity": f"{total.intensity:.3g} FLOP/B",
        "incomplete": incomplete,
        "layers": _layers(traced),
        "dim_styles": "\n".join(f".{o} {{ color: {color}; {_DIM_MARKS[o]} }}" for o, color in _DIM_COLORS.items()),
        "kind_legend": "".join(_key(f'class="fill" style="background: {COLORS[k]}"', text) for k, text in _KIND_MEANING.items()),
        "dim_legend": "".join(_key(f'class="{origin}"', f"{origin}: {text}") for origin, text in _DIM_MEANING.items()),
        "flow": draw_flow(traced, rows, _box_texts).to_html(
            full_html=False, include_plotlyjs=True, config={"displayModeBar": False}
        ),
        "head": "".join(f'<th class="{_align(column)}">{column}</th>' for column in _COLUMNS),
        "operations": _table_body(rows, traced),
        "roofline": _roofline(rows).to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False}),
        "configuration": ", ".join(_dim_text(expr, value) for expr, value in config_values(traced).items()),
    }
    path.write_text(_PAGE.substitute(parts), encoding="utf-8")


def _key(attributes: str, text: str) -> str:
    return f'<span class="key"><span {attributes}>{escape(text)}</span></span>'


def _align(column: str) -> str:
    return "number" if column in {"count", "FLOPs", "bytes", "FLOP/B"} else "text"


def _layers(traced: TracedModel) -> str:
    counts = layer_counts(op for op in traced.operations if op.stage == "decoder")
    text = ", ".join(f"{escape(layer)} × {count}" for layer, count in counts.items())  # noqa: RUF001 - as counts are written
    return f"Layers: {text}." if text else ""


def _table_body(rows: Sequence[CostedOperation], traced: TracedModel) -> str:
    """Return the operations as table rows, those of each stage under its name."""
    lines = []
    for stage, members in groupby(rows, key=lambda row: row.operation.stage):
        lines.append(f'<tbody><tr><th class="stage" colspan="{len(_COLUMNS)}">{escape(stage)}</th></tr>')
        lines += [_table_row(row, traced) for row in members]
        lines.append("</tbody>")
    return "\n".join(lines)


def _table_row(row: CostedOperation, traced: TracedModel) -> str:
    operation = row.operation
    state = f' style="background: {COLORS["stateful"]}" title="stateful"' if operation.stateful else ""
    flops, size, intensity = _costs(row)
    module = _breakable(operation.module or traced.model)
    cells = [
        f'<td{state}>{module}<br><span class="class">{escape(_title(operation))}</span></td>',
        f'<td class="number">{operation.count}</td>',
        f'<td class="number" title="{escape(operation.flops)}">{flops}</td>',
        f'<td class="number" title="{escape(operation.bytes)}">{size}</td>',
        f'<td class="number">{intensity}</td>',
        f"<td>{_tensors(operation.inputs)}</td>",
        f"<td>{_tensors(operation.outputs)}</td>",
        f'<td title="{operation.signature}"><code>{operation.signature[:_SIGNATURE_DIGITS]}</code></td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _title(operation: TracedOperation) -> str:
    return f"{operation.module_class} (stateful)" if operation.stateful else operation.module_class


def _costs(row: CostedOperation) -> tuple[str, str, str]:
    if row.cost is None:
        return "?", "?", "?"
    return human(row.cost.flops, "FLOP"), human(row.cost.size_bytes, "B"), f"{row.cost.intensity:.3g}"


def _tensors(tensors: Sequence[TracedTensor]) -> str:
    return "".join(f'<div class="tensor">{_tensor(tensor)}</div>' for tensor in tensors)


def _tensor(tensor: TracedTensor) -> str:
    kind = " weight" if tensor.is_parameter else ""
    shape = " × ".join(map(_dim, tensor.shape))  # noqa: RUF001 - as dimensions are written
    return f'<span class="type">{tensor.dtype}{kind}</span> {shape}'


def _dim(dim: TracedDim) -> str:
    text = _dim_text(spell_dim(dim), dim.value)
    return f'<span class="{dim.origin}" title="{_DIM_MEANING[dim.origin]}">{text}</span>'


def _dim_text(expr: str, value: int | None) -> str:
    """Return a dimension's name, with its value where it has one beside its name."""
    shown = "" if value is None or expr == str(value) else f'<span class="value">={value}</span>'
    return f"{_breakable(expr)}{shown}"


def _breakable(text: str) -> str:
    """Return a path or an expression, escaped, that may go on in a new line behind its dots and signs; behind a number's not."""
    return re.sub(r"(?<!\d)(\*\*|[.*/])", r"\1<wbr>", escape(text))


def _box_texts(row: CostedOperation) -> tuple[str, str]:
    """Return a box's second line and its hover text, in the HTML that plotly draws."""
    operation = row.operation
    flops, size, intensity = _costs(row)
    sides = [*(("in", tensor) for tensor in operation.inputs), *(("out", tensor) for tensor in operation.outputs)]
    lines = [
        f"<b>{escape(operation.module)}</b> {escape(_title(operation))}",
        f"signature {operation.signature[:_SIGNATURE_DIGITS]}, {operation.count} runs in a step",
        *(line for label, tensor in sides for line in _plain(label, tensor)),
        *map(escape, wrap(f"FLOPs {flops} = {operation.flops}", _HOVER_WIDTH)),
        *map(escape, wrap(f"bytes {size} = {operation.bytes}", _HOVER_WIDTH)),
        f"{intensity} FLOP/B",
        *map(escape, wrap(", ".join(f"{key} {value}" for key, value in operation.attributes.items()), _HOVER_WIDTH)),
    ]
    cost = size if flops == "0" else f"{flops}, {size}"
    return f"{escape(operation.module_class)} · {cost}", "<br>".join(lines)


def _plain(label: str, tensor: TracedTensor) -> list[str]:
    """Return a tensor in the colours of its dimensions, as plotly's own HTML has them, folded: a drawing cuts what leaves it."""
    lines, width = [f"{label} {tensor.dtype}{' weight' if tensor.is_parameter else ''}"], 0
    for axis, dim in enumerate(tensor.shape):
        text = _valued(dim)
        width = (width or len(lines[0])) + len(text)
        shown = f'{"× " if axis else ""}<span style="color: {_DIM_COLORS[dim.origin]}">{escape(text)}</span>'  # noqa: RUF001 - as dimensions are written
        if width > _HOVER_WIDTH:
            lines.append(shown)
            width = len(text)
        else:
            lines[-1] += f" {shown}"
    return lines


def _valued(dim: TracedDim) -> str:
    shown = "" if dim.value is None or dim.expr == str(dim.value) else f"={dim.value}"
    return f"{spell_dim(dim)}{shown}"


def _point_text(row: CostedOperation) -> str:
    flops, size, intensity = _costs(row)
    operation = row.operation
    return f"<b>{escape(operation.module)}</b> {escape(_title(operation))}<br>{flops}, {size}, {intensity} FLOP/B"


def _roofline(rows: Sequence[CostedOperation]) -> Figure:
    """Return work over arithmetic intensity, a point an operation, on logarithmic axes."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for kind, meaning in _KIND_MEANING.items():
        points = [(row, row.cost) for row in rows if row.cost is not None and row.cost.flops > 0 and kind_of(row) == kind]
        if not points:
            continue
        figure.add_scatter(
            x=[cost.intensity for _, cost in points],
            y=[cost.flops for _, cost in points],
            mode="markers",
            name=meaning,
            marker={"size": 12, "color": COLORS[kind], "line": {"width": 1, "color": "#495057"}},
            hovertext=[_point_text(row) for row, _ in points],
            hoverinfo="text",
            hoverlabel={"bgcolor": "white"},
        )
    figure.update_xaxes(type="log", title="FLOPs a byte", nticks=6)
    figure.update_yaxes(type="log", title="FLOPs of one run", exponentformat="SI", nticks=6)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure.update_layout(template="plotly_white", width=600, height=400, margin={"t": 20, "l": 60, "r": 20}, legend=legend)
    return figure
