"""Latency limits on the command line: `NAME=TIME`, as `ttft_p90=500ms`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNITS = {"ms": 1e-3, "us": 1e-6, "s": 1.0}

LimitTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--slo",
        metavar="NAME=TIME",
        help="A latency limit, as ttft-p90=500ms, tpot-mean=30ms or e2e-p99=8s; may be given again.",
    ),
]


def parse_limits(texts: list[str] | None, named: Mapping[str, str | None] | None = None) -> dict[str, float]:
    """Return limits in seconds by metric and statistic, as `ttft_p90`.

    Args:
        texts: As `--slo` takes them.
        named: Times by the names that have flags of their own, in seconds where they have no unit; those without one are left
            out.
    """
    from dooly.searching import LIMITED

    given = {name: time for name, time in (named or {}).items() if time is not None}
    limits_s = {name: _seconds(f"--{name.replace('_', '-')}", time, _UNITS | {"": 1.0}) for name, time in given.items()}
    for typed, time in (_split(text) for text in texts or ()):
        if (name := typed.replace("-", "_")) not in LIMITED:
            metrics, statistics = (
                ", ".join(dict.fromkeys(words)) for words in zip(*(n.split("_") for n in LIMITED), strict=True)
            )
            raise typer.BadParameter(f"--slo: {typed!r} is none of {metrics} with one of {statistics}, as ttft-p90=500ms")
        if name in limits_s:
            raise typer.BadParameter(f"--slo: {name} is limited twice; give one time for it")
        limits_s[name] = _seconds(f"--slo: {name}", time, _UNITS)
    return limits_s


def _split(text: str) -> tuple[str, str]:
    """Return the name and the time of a limit such as `ttft-p90=500ms`, as they were typed."""
    name, _, time = text.partition("=")
    return name.strip(), time.strip()


def _seconds(place: str, text: str, units: Mapping[str, float]) -> float:
    """Return the seconds of a time such as `0.5s` or `500ms`; a number alone might be meant in either, unless units say so."""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        seconds = float(text.removesuffix(unit)) * units[unit]
    except (KeyError, ValueError) as error:
        raise typer.BadParameter(f"{place}: {text!r} is no time with its unit; write 500ms or 0.5s") from error
    if not 0 < seconds < math.inf:
        raise typer.BadParameter(f"{place}: {text!r} is no positive finite time; write 500ms or 0.5s")
    return seconds


def judge_limits(summary: Mapping[str, Any], limits_s: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return by limit what it is, what the simulation came to in seconds, and whether that meets it.

    Args:
        summary: What `SimulationResult.summary` returns.
        limits_s: Limits in seconds by metric and statistic, as `parse_limits` returns them.
    """
    from dooly.searching import share_of_limit

    found = {}
    for name, limit_s in limits_s.items():
        metric, _, statistic = name.rpartition("_")
        value_s = summary[f"{metric}_s"][statistic]
        found[name] = {"limit_s": limit_s, "value_s": value_s, "met": share_of_limit(value_s, limit_s) <= 1}
    return found
