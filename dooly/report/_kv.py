"""The page of `dooly kv error`: error against budget for all policies, by layer, and by head."""

from __future__ import annotations

from html import escape
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from dooly.report._page import chart, table, write_page

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from plotly.graph_objects import Figure

    from dooly.kv import OutputError

_NOTE = """Norm of the difference to whole attention over the norm of whole attention's output, after the output projection. Each
layer's alone: its input is what whole attention computed. Policies that drop tokens are judged by the tokens that follow the
prompt, CritiPrefill by the prompt's own; it computes the first 4,096 tokens and the first layer whole. Bars are standard
deviations over seeds."""
_WORST_NOTE = """The worst of the later tokens in each layer, mean over layers."""
_HEADS_NOTE = """Each query head's own part of the output, at the smallest budget; mean over seeds, in shares."""


def write_kv_errors(model: str, errors: Sequence[OutputError], path: Path) -> None:
    """Write the errors of policies as one self-contained HTML page.

    Args:
        model: Whose attention it was.
        errors: Any policies, budgets, lengths and seeds.
        path: Where to.
    """
    lengths = list(dict.fromkeys(each.num_tokens for each in errors))
    sections = [f'<p class="note">{_NOTE}</p>']
    for place, length in enumerate(lengths):
        of_length = [each for each in errors if each.num_tokens == length]
        sections += [
            f"<h2>Error against budget, prompts of {length:,} tokens</h2>",
            chart(_against_budget(of_length, lambda e: e.output), f"output-{length}", height=440, first=place == 0),
            f'<h2>Worst token</h2><p class="note">{_WORST_NOTE}</p>',
            chart(_against_budget(of_length, lambda e: e.worst), f"worst-{length}", height=440),
            "<h2>By layer</h2>",
            _by_layer(of_length),
            f'<h2>By head</h2><p class="note">{_HEADS_NOTE}</p>',
            chart(_by_head(of_length), f"heads-{length}", height=90 + 40 * len(_names(of_length))),
        ]
    write_page(f"KV-cache policies: {escape(model)}", sections, path)


def _names(errors: Sequence[OutputError]) -> list[str]:
    return list(dict.fromkeys(each.policy for each in errors))


def _against_budget(errors: Sequence[OutputError], value: Callable[[OutputError], float]) -> Figure:
    from plotly import graph_objects

    figure = graph_objects.Figure()
    budgets = sorted({each.budget for each in errors})
    for name in _names(errors):
        series = [[value(e) for e in errors if e.policy == name and e.budget == budget] for budget in budgets]
        spread = [stdev(values) if len(values) > 1 else 0.0 for values in series]
        means = [fmean(values) for values in series]
        figure.add_scatter(x=budgets, y=means, error_y={"array": spread, "thickness": 1}, mode="lines+markers", name=name)
    figure.update_xaxes(title="budget: share of the prompt's tokens", tickformat=".0%", type="log", tickvals=budgets)
    figure.update_yaxes(title="relative error", tickformat=".1%", rangemode="tozero")
    return figure


def _by_layer(errors: Sequence[OutputError]) -> str:
    layers = [f"layer {at}" for at in range(len(errors[0].layers))]
    rows = []
    for name, budget in dict.fromkeys((each.policy, each.budget) for each in errors):
        of_both = [each for each in errors if (each.policy, each.budget) == (name, budget)]
        means = (fmean(each.layers[at].output for each in of_both) for at in range(len(layers)))
        rows.append([name, f"{budget:.4g}", *(f"{mean:.2%}" for mean in means)])
    return table(["policy", "budget", *layers], rows, numbers=frozenset(["budget", *layers]))


def _by_head(errors: Sequence[OutputError]) -> Figure:
    from plotly import graph_objects

    smallest = min(each.budget for each in errors)
    rows = {name: [e for e in errors if e.policy == name and e.budget == smallest] for name in _names(errors)}
    first = errors[0].layers
    heads = [(at, head) for at, layer in enumerate(first) for head in range(len(layer.heads))]
    figure = graph_objects.Figure(
        graph_objects.Heatmap(
            x=[f"layer {at} head {head}" for at, head in heads],
            y=list(rows),
            z=[[fmean(e.layers[at].heads[head] for e in found) for at, head in heads] for found in rows.values()],
            colorscale="Viridis",
            colorbar={"tickformat": ".0%"},
            hovertemplate="%{y}, %{x}: %{z:.2%}<extra></extra>",
        )
    )
    figure.update_xaxes(showticklabels=len(heads) <= 36)  # noqa: PLR2004 - as many names as fit
    return figure
