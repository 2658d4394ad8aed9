"""Where the time of a simulation's steps goes: by operation, and by what is known of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plotly.graph_objects import Figure

    from dooly.batch import Batch
    from dooly.predict import LatencyModel
    from dooly.simulation import LoggedSteps, StepLog
    from dooly.speculation import SpeculativeConfig

_SAMPLES = 200
"""Steps that are looked into."""
_SHOWN = 18
"""Operations that have a bar of their own."""
_OTHERS = "others"
_DRAFTER = "drafter"
"""What its passes are called among the operations; their cost is as it was given."""
_SELECTION = "selection"
"""What a KV-cache policy's scoring and choosing is called among them."""
SOURCE_COLORS = {"measured": "#10b981", "family": "#3b82f6", "estimated": "#f97316"}
"""Colours of where latencies are from."""


def step_shares(
    steps: StepLog, latency: LatencyModel, speculative: SpeculativeConfig | None = None
) -> Mapping[tuple[str, str], float]:
    """Return the share of all steps' device time by operation and source: of steps spread evenly over that time.

    Args:
        steps: The steps of a simulation, at least one.
        latency: What priced them.
        speculative: How tokens are drafted behind each.
    """

    def price_s(batch: Batch) -> float:
        return latency.step(batch, extrapolate=True).seconds

    ends = np.cumsum([int((run.ends_ns - run.starts_ns).sum()) for run in steps.runs])
    sums: dict[tuple[str, str], float] = {}
    for moment in (np.arange(_SAMPLES) + 0.5) / _SAMPLES * ends[-1]:
        place = int(np.searchsorted(ends, moment, side="right"))
        run = steps.runs[place]
        within = moment - (ends[place - 1] if place else 0)
        took = np.cumsum(run.ends_ns - run.starts_ns)
        batch = run.batch(min(int(np.searchsorted(took, within, side="right")), len(took) - 1))
        found = latency.step(batch, extrapolate=True)
        drafting_s = 0.0 if speculative is None else speculative.drafting(batch, found.seconds, price_s)
        parts = _selecting_s(run, latency) | {(name, source): seconds for (name, source), seconds in found.by_source_s.items()}
        parts |= {(_DRAFTER, "estimated"): drafting_s} if drafting_s else {}
        whole_s = sum(parts.values())
        for key, seconds in parts.items():
            sums[key] = sums.get(key, 0.0) + seconds / whole_s / _SAMPLES
    return sums


def _selecting_s(run: LoggedSteps, latency: LatencyModel) -> dict[tuple[str, str], float]:
    """Return what selecting of the prompts that a step ends takes, in seconds, by where that is from."""
    sums: dict[tuple[str, str], float] = {}
    if run.selection is None:
        return sums
    policy, prompts = run.selection
    for prompt in prompts:
        found = latency.selections.latency(policy, *prompt)
        sums[_SELECTION, found.source] = sums.get((_SELECTION, found.source), 0.0) + found.ns / 1e9
    return sums


def draw_step_shares(shares: Mapping[tuple[str, str], float]) -> Figure:
    """Return a bar for each operation, the longest on top, in the colours of where its latency is from."""
    from plotly import graph_objects

    totals: dict[str, float] = {}
    for (name, _), share in shares.items():
        totals[name] = totals.get(name, 0.0) + share
    order = sorted(totals, key=lambda name: (-totals[name], name))
    shown = order[:_SHOWN]
    rest = [_OTHERS] if len(order) > _SHOWN else []
    figure = graph_objects.Figure()
    for source, color in SOURCE_COLORS.items():
        own = {name: share for (name, of), share in shares.items() if of == source}
        if not own:
            continue
        values = [own.get(name, 0.0) for name in shown] + [sum(own.get(name, 0.0) for name in order[_SHOWN:])] * len(rest)
        figure.add_bar(
            x=[100 * value for value in reversed(values)],
            y=list(reversed(shown + rest)),
            orientation="h",
            name=f"{source}, {sum(own.values()):.0%}",
            marker={"color": color},
            hovertemplate="%{y}: %{x:.2f} %<extra></extra>",
        )
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    figure.update_xaxes(title="% of the device's time")
    return figure
