"""Write the page of published configurations from what `published.py` found: which trace, and what each takes.

Counts that a maker publishes stand in brackets: those of `published_counts.json` with their source, else what the name says.
So do bytes of a checkpoint, and in bfloat16 two for each published parameter.

Run `python benchmarks/published_page.py > docs/published-models.md`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "cpu" / "published.json"
COUNTS = HERE / "published_counts.json"
_TOTAL = re.compile(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)B")
_ACTIVE = re.compile(r"-A(\d+(?:\.\d+)?)B")
_HEAD = """\
# Published models

Configurations as model makers publish them, gathered by [aiconfigurator](https://github.com/ai-dynamo/aiconfigurator)
(Apache-2.0): {traced} of {all} trace as vLLM 0.32 runs them, on the first of H200 and B200 that takes them. No weights and no GPU
take part. `python benchmarks/published.py FOLDER --json FILE` traces a folder of them, and `python benchmarks/published_page.py`
writes this page.

- **Parameters** and **active** parameters are billions, of the language model as it is served for text. A token takes one row of
  the embedding, which therefore is not active; makers differ in that, so + is what it would add. In brackets stands what the
  maker publishes.
- **Memory** is what all parameters take in the GPU's memory, scales included, in GB: a kernel may pad or repack what a checkpoint
  holds. **Checkpoint** is the same without what an engine makes of other parameters while it loads; in brackets what the maker's
  files hold for text, or the published count at two bytes where all is in bfloat16.
- **KV** is what one cached token takes over all layers of full attention, in KB; **window** is the same over layers that attend
  to a window or a chunk, and cache no more than that; **state** is what the recurrent states of one request take, in MB, however
  long it is.
- **Left out** are the parts of a checkpoint that text does not need, by their fields in `config.json`.

| configuration | GPU | weights | parameters | active | memory | checkpoint | KV | window | state | left out |
|---|---|---|---|---|---|---|---|---|---|---|
"""
_REFUSED = """
## Refused

vLLM 0.32 has no code for them, or its code cannot be followed by `torch.compile` without the GPU.

| configuration | reason |
|---|---|
"""
_SOURCES = """
## Where counts come from

| configurations | source |
|---|---|
"""


def main() -> None:
    """Print the page."""
    print(page(json.loads(RESULTS.read_text()), json.loads(COUNTS.read_text())), end="")


def page(rows: list[dict[str, Any]], counts: list[dict[str, Any]]) -> str:
    """Return the page's text."""
    known = {name: entry for entry in counts for name in entry["configurations"]}
    traced = [row for row in rows if "refused" not in row]
    lines = [_HEAD.format(traced=len(traced), all=len(rows))]
    lines += [_row(row, known.get(row["configuration"])) for row in traced]
    lines.append(_REFUSED)
    lines += [f"| {_name(row)} | {row['refused'].replace('|', '/')} |\n" for row in rows if "refused" in row]
    lines.append(_SOURCES)
    lines += [f"| {', '.join(map(_spell, entry['configurations']))} | {entry['source']} |\n" for entry in counts]
    lines += [
        f"| {', '.join(map(_spell, entry['checkpoint']['configurations']))}, checkpoint | {entry['checkpoint']['source']} |\n"
        for entry in counts
        if "checkpoint" in entry
    ]
    return "".join(lines)


def checkpoint_bytes(row: dict[str, Any]) -> int:
    """Return what a checkpoint holds; passes before it was counted had no configuration of which anything is kept twice."""
    return int(row.get("checkpoint_bytes", row["parameter_bytes"]))


def _published_bytes(row: dict[str, Any], entry: dict[str, Any] | None, total: float | None) -> float | None:
    if entry is not None and row["configuration"] in entry.get("checkpoint", {}).get("configurations", ()):
        return float(entry["checkpoint"]["bytes"])
    return 2e9 * total if total is not None and row["quantization"] is None else None


def _row(row: dict[str, Any], entry: dict[str, Any] | None) -> str:
    total, active = _published(row["configuration"], entry)
    holds = _published_bytes(row, entry, total)
    cells = (
        _name(row),
        row["hardware"] + ("" if row["kv_cache_dtype"] == "auto" else f", `--kv-cache-dtype {row['kv_cache_dtype']}`"),
        row["quantization"] or "bfloat16",
        _count(row["parameters"], total),
        _count(row["active_parameters"], active) + f" + {row['embedding_parameters'] / 1e9:.2f}",
        f"{row['parameter_bytes'] / 1e9:.1f}",
        f"{checkpoint_bytes(row) / 1e9:.1f}" + ("" if holds is None else f" ({holds / 1e9:.0f})"),
        f"{row['kv_bytes_per_token'] / 1e3:.1f}",
        f"{row['windowed_kv_bytes_per_token'] / 1e3:.1f}" if row["windowed_kv_bytes_per_token"] else "",
        f"{row['state_bytes_per_request'] / 1e6:.1f}" if row["state_bytes_per_request"] else "",
        ", ".join(f"`{name}`" for name in row["left_out"]),
    )
    return f"| {' | '.join(cells)} |\n"


def _published(name: str, entry: dict[str, Any] | None) -> tuple[float | None, float | None]:
    """Return the counts that a maker publishes, in billions; None for what nobody says here."""
    if entry is not None:
        return entry["parameters"] / 1e9, entry["active_parameters"] / 1e9
    total, active = _TOTAL.search(name), _ACTIVE.search(name)
    return total and float(total[1]), active and float(active[1])


def _count(parameters: int, published: float | None) -> str:
    return f"{parameters / 1e9:.2f}" + ("" if published is None else f" ({published:g})")


def _name(row: dict[str, Any]) -> str:
    return _spell(row["configuration"])


def _spell(configuration: str) -> str:
    return configuration.replace("--", "/")


if __name__ == "__main__":
    main()
