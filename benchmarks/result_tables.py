"""Write the tables of pages that are made of results: `python benchmarks/result_tables.py` brings all pages up to date.

A page says where with `<!-- table NAME -->` ahead of a table and `<!-- end of NAME -->` behind it. A new table is a function that
yields rows, the head first, in the module that is about its kind, with a name in its `TABLES`, and these two lines in a page. A
test holds every page to its results.
"""

from __future__ import annotations

import re
from pathlib import Path

import result_tables_cpu
import result_tables_gpu
import result_tables_overview
import result_tables_peers

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
TABLES = result_tables_overview.TABLES | result_tables_gpu.TABLES | result_tables_cpu.TABLES | result_tables_peers.TABLES
"""What a page can ask for, by name."""
_PLACE = re.compile(r"<!-- table (?P<name>[\w-]+) -->\n.*?<!-- end of (?P=name) -->", re.DOTALL)


def main() -> None:
    """Bring every page up to date."""
    for page in PAGES:
        text = page.read_text()
        if (made := filled(text)) != text:
            page.write_text(made)
            print(page)


def filled(text: str) -> str:
    """Return a page with its tables made anew."""

    def made(place: re.Match[str]) -> str:
        name = place["name"]
        head, *rows = TABLES[name]()
        shown = [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in (head, *rows)]
        table = "\n".join([shown[0], "|---" * len(head) + "|", *shown[1:]])
        return f"<!-- table {name} -->\n\n{table}\n\n<!-- end of {name} -->"

    return _PLACE.sub(made, text)


if __name__ == "__main__":
    main()
