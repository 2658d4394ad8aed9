"""The operations of a traced model on a terminal: a line each, its inputs below it, nothing cut off."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from dooly.report import config_values, human, place_of, spell_dim, total_cost
from dooly.tracing import layer_counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console
    from rich.text import Text

    from dooly.report import CostedOperation
    from dooly.tracing import TracedDim, TracedModel, TracedTensor

_PIPE_WIDTH = 100
"""Columns where the output is no terminal."""
_STYLES = {"request": "cyan", "mixed": "magenta", "config": ""}
_LEGEND = {"request": "set by the requests (cyan)", "mixed": "by both (magenta)", "config": "by the configuration (plain)"}
_SIGNATURE_DIGITS = 8
_NUMBERS_WIDTH = 35


def print_operations(traced: TracedModel, rows: Sequence[CostedOperation], batch: str) -> None:
    """Print every operation by stage and layer, with FLOPs and bytes of one run in the batch that `batch` spells."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    for line in _lines(traced, rows, batch, console):
        console.print(line)


def _lines(traced: TracedModel, rows: Sequence[CostedOperation], batch: str, console: Console) -> Iterator[Text]:
    from rich.text import Text

    for stage, members in groupby(rows, key=lambda row: row.operation.stage):
        numbers = _numbers("count", "FLOPs", "bytes", "signature")
        yield from _beside(Text(stage, "bold"), Text(numbers, "bold"), console.width)
        counts = layer_counts(op for op in traced.operations if op.stage == stage)
        if counts:
            text = ", ".join(f"{layer} × {count}" for layer, count in counts.items())  # noqa: RUF001 - as counts are written
            yield from _indented(Text(f"layers: {text}", "dim"), 1, console)
        shown = ""
        for row in members:
            layer, name = place_of(row.operation.module, traced)
            if layer and layer != shown:
                yield Text(f" {layer}", "bold")
            shown = layer
            yield from _operation(row, name, 2 if layer else 1, console)
        yield Text()
    yield from _footer(traced, rows, batch, console)


def _operation(row: CostedOperation, name: str, indent: int, console: Console) -> Iterator[Text]:
    """Yield an operation's line, and one for each input."""
    from rich.text import Text

    operation, cost = row.operation, row.cost
    left = Text(" " * indent + name)
    left.append(f"  {operation.module_class}", "dim")
    if operation.stateful:
        left.append(" ●", "yellow")
    flops, size = ("?", "?") if cost is None else (human(cost.flops, "FLOP"), human(cost.size_bytes, "B"))
    signature = operation.signature[:_SIGNATURE_DIGITS]
    yield from _beside(left, Text(_numbers(str(operation.count), flops, size, signature)), console.width)
    for tensor in operation.inputs:
        yield from _indented(_tensor(tensor), indent + 3, console)
    if cost is None:
        yield from _indented(Text(f"FLOPs {operation.flops}, bytes {operation.bytes}", "dim"), indent + 3, console)


def _footer(traced: TracedModel, rows: Sequence[CostedOperation], batch: str, console: Console) -> Iterator[Text]:
    from rich.text import Text

    total = total_cost(rows)
    cost = f"{human(total.flops, 'FLOP')}, {human(total.size_bytes, 'B')}, {total.intensity:.3g} FLOP/B"
    yield Text.assemble(("step", "bold"), f" at --batch {batch}: {cost}")
    if any(row.cost is None for row in rows):
        yield Text("? depends on more than the batch tells; the step is without it")
    values = ", ".join(f"{expr} = {value}" for expr, value in config_values(traced).items())
    yield from _indented(Text.assemble(("configuration", "bold"), f" {values}"), 0, console)
    if console.is_terminal and not console.no_color:
        parts = [Text(text, _STYLES[origin]) for origin, text in _LEGEND.items()]
        yield from _indented(Text.assemble(("dimensions", "bold"), " ", Text(", ").join(parts)), 0, console)
    notes = "FLOPs and bytes of one run; count is all runs in a step, of every layer that shares the operation"
    stateful = "; ● stateful: costs by the state of the engine too" if any(op.stateful for op in traced.operations) else ""
    yield from _indented(Text(f"{notes}{stateful}", "dim"), 0, console)


def _numbers(count: str, flops: str, size: str, signature: str) -> str:
    return f"{count:>5}{flops:>11}{size:>9}{signature:>10}"


def _beside(left: Text, right: Text, width: int) -> Iterator[Text]:
    """Yield a text with the numbers flush right behind it; below it where both do not fit in one line."""
    from rich.text import Text

    space = width - left.cell_len - _NUMBERS_WIDTH
    if space < 1:
        yield left
        left, space = Text(), width - _NUMBERS_WIDTH
    yield Text.assemble(left, " " * max(space, 0), right)


def _indented(text: Text, indent: int, console: Console) -> Iterator[Text]:
    """Yield a text's lines, each from one column on, folded where the terminal ends."""
    from rich.text import Text

    for line in text.wrap(console, console.width - indent):
        line.rstrip()
        yield Text.assemble(" " * indent, line)


def _tensor(tensor: TracedTensor) -> Text:
    """Return element type and dimensions, those that requests set coloured apart."""
    from rich.text import Text

    kind = "weight" if tensor.is_parameter else ""
    head = Text(" ".join(filter(None, (tensor.dtype, kind))), "dim")
    return Text(" ").join([head, Text(" × ").join(map(_dim, tensor.shape))] if tensor.shape else [head])  # noqa: RUF001 - as dimensions are written


def _dim(dim: TracedDim) -> Text:
    from rich.text import Text

    return Text(spell_dim(dim), _STYLES[dim.origin])
