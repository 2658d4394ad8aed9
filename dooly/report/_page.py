"""The frame of a page with charts: one file that needs no network, and follows the reader's choice of light or dark."""

from __future__ import annotations

from html import escape
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from plotly.graph_objects import Figure

PALETTE = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#eab308", "#06b6d4", "#ec4899")
"""Colours of series, legible on light and on dark."""
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: light-dark(#212529, #e9ecef); --soft: light-dark(#495057, #adb5bd);
 --line: light-dark(#dee2e6, #373a40); --ground: light-dark(white, #16181b); --mark: light-dark(#e7f5ff, #1b2f45); }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--ground);
 margin: 2rem auto; max-width: 1600px; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem; }
.note { color: var(--soft); max-width: 60rem; margin: .3rem 0; }
.charts { display: grid; grid-template-columns: repeat(2, 1fr); gap: 0 1.5rem; }
@media (max-width: 800px) { .charts { grid-template-columns: 1fr; } }
section { min-width: 0; }
.chart, .scroll { min-width: 0; overflow-x: auto; }
code { overflow-wrap: anywhere; }
table { border-collapse: collapse; }
th { text-align: left; border-bottom: 2px solid var(--line); vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); vertical-align: top; }
th, td { padding: .3rem .6rem; }
@media (max-width: 1100px) { table { font-size: 12px; } th, td { padding: .3rem .4rem; } }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td { white-space: nowrap; }
details { margin: .3rem 0; color: var(--soft); } summary { color: var(--ink); }
tr.best { background: var(--mark); }
</style>
</head>
<body>
<h1>$title</h1>
$body
<script>
const dark = matchMedia("(prefers-color-scheme: dark)");
function paint() {
  const [ink, line] = dark.matches ? ["#e9ecef", "#373a40"] : ["#212529", "#dee2e6"];
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    const changes = {"font.color": ink};
    for (const axis of Object.keys(plot.layout).filter(key => /^[xy]axis/.test(key)))
      Object.assign(changes, {[axis + ".gridcolor"]: line, [axis + ".zerolinecolor"]: line, [axis + ".linecolor"]: line});
    Plotly.relayout(plot, changes).then(Plotly.Plots.resize); // charts were drawn before those beside them were there
  }
}
dark.addEventListener("change", paint);
addEventListener("load", paint);
</script>
</body>
</html>
""")


def write_page(title: str, sections: Sequence[str], path: Path) -> None:
    """Write a page of sections of HTML under a title; the first chart among them brings the library that draws all."""
    path.write_text(_PAGE.substitute(title=escape(title), body="\n".join(sections)), encoding="utf-8")


def chart(figure: Figure, name: str, *, height: int, first: bool = False) -> str:
    """Return a figure as HTML.

    Args:
        figure: What to draw. Its layout is set here.
        name: Its name on the page, the same in every run.
        height: In pixels.
        first: Whether it is the page's first, which brings the library.
    """
    figure.update_layout(
        template="none",
        height=height,
        margin={"t": 30, "l": 65, "r": 20, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"bgcolor": "#212529", "font": {"color": "white"}},
        colorway=PALETTE,
    )
    figure.update_xaxes(automargin=True, showline=True, ticks="outside", tickcolor="rgba(0,0,0,0)")
    figure.update_yaxes(automargin=True)
    shown = figure.to_html(
        full_html=False,
        include_plotlyjs=first,
        div_id=name,
        config={"displayModeBar": False, "responsive": True},
    )
    return f'<div class="chart">{shown}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: frozenset[str], best: int | None = None) -> str:
    """Return a table as HTML.

    Args:
        head: Names of the columns.
        rows: Texts of the cells.
        numbers: Columns that are set flush right.
        best: Row to mark.
    """
    kinds = ["number" if name in numbers else "text" for name in head]
    shown = "".join(f'<th class="{kind}">{escape(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    lines = [f"<thead><tr>{shown}</tr></thead><tbody>"]
    for place, row in enumerate(rows):
        cells = "".join(f'<td class="{kind}">{escape(text)}</td>' for text, kind in zip(row, kinds, strict=True))
        lines.append(f'<tr class="best">{cells}</tr>' if place == best else f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</tbody></table></div>'
