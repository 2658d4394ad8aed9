"""A table of operations as plain text: what `print` shows of a traced model."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dooly.tracing._model import TracedModel, TracedOperation, TracedTensor

_WIDTH = 120
_NO_BREAK = "\N{NO-BREAK SPACE}"
_LEAST_SHAPES_WIDTH = 50


def format_table(traced: TracedModel) -> str:
    """Return each operation's path, count and stage, and the shapes that it reads and writes, over names; long ones folded."""
    rows = [("operation", "count", "stage", "inputs -> outputs"), *map(_cells, traced.operations)]
    path, count, stage = (max(len(row[column]) for row in rows) for column in range(3))
    lines = [traced.model]
    for row in rows:
        left = f"{row[0]:{path}}  {row[1]:>{count}}  {row[2]:{stage}}  "
        folded = wrap(row[3], max(_WIDTH - len(left), _LEAST_SHAPES_WIDTH), break_long_words=False, break_on_hyphens=False)
        lines.append(left + f"\n{' ' * len(left)}".join(folded))
    return "\n".join(lines).replace(_NO_BREAK, " ")


def _cells(operation: TracedOperation) -> tuple[str, str, str, str]:
    shapes = [*map(_shape, operation.inputs), f"->{_NO_BREAK}{' '.join(map(_shape, operation.outputs))}"]
    return operation.module or operation.name, str(operation.count), operation.stage, " ".join(shapes)


def _shape(tensor: TracedTensor) -> str:
    return f"[{', '.join(dim.expr for dim in tensor.shape)}]".replace(" ", _NO_BREAK)
