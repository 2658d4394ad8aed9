"""How quantities are written."""

from __future__ import annotations


def human(value: float, unit: str) -> str:
    """Return a quantity in three digits with a decimal prefix, such as `2.1 GFLOP`; zero stands alone."""
    if value == 0:
        return "0"
    for prefix in ("", "k", "M", "G", "T"):
        if value < 999.5:  # noqa: PLR2004 - from here on three digits round up to the next prefix
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:,.3g} P{unit}" if value < 999.5 else f"{value:,.0f} P{unit}"  # noqa: PLR2004 - as above
