"""A table as plain text: what `print` shows of a traced model."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_BREAK = "\N{NO-BREAK SPACE}"
"""A space at which no line is folded."""
_WIDTH = 120
_LEAST_FOLDED_WIDTH = 50


def format_table(title: str, rows: Sequence[tuple[str, str, str, str]]) -> str:
    """Return a title, and rows of four cells below it; the second is flush right, the last is folded where it is long."""
    first, second, third = (max(len(row[column]) for row in rows) for column in range(3))
    lines = [title]
    for row in rows:
        left = f"{row[0]:{first}}  {row[1]:>{second}}  {row[2]:{third}}  "
        folded = wrap(row[3], max(_WIDTH - len(left), _LEAST_FOLDED_WIDTH), break_long_words=False, break_on_hyphens=False)
        lines.append(left + f"\n{' ' * len(left)}".join(folded))
    return "\n".join(lines).replace(NO_BREAK, " ")
