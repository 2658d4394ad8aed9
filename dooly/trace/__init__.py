"""Tracing: from a module to its operations, through a custom `torch.compile` backend with every size a symbol.

Loads torch only when something is traced; the table of operations (`TracedModel`) needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dooly.trace._capture import Capture, dooly_backend, tracing
from dooly.trace._constructor import instance_sizes
from dooly.trace._fold import fold_layers, layer_kinds
from dooly.trace._forms import evaluate_form, form_names, rename_form
from dooly.trace._forward import capture_forward
from dooly.trace._model import TracedCall, TracedDim, TracedModel, TracedOperation, TracedTensor
from dooly.trace._module import trace
from dooly.trace._provenance import NO_PROVENANCE, ConfigFields, Provenance, name_sizes
from dooly.trace._table import tabulate

if TYPE_CHECKING:
    from dooly.trace._traced import Traced

__all__ = [
    "NO_PROVENANCE",
    "Capture",
    "ConfigFields",
    "Provenance",
    "Traced",
    "TracedCall",
    "TracedDim",
    "TracedModel",
    "TracedOperation",
    "TracedTensor",
    "capture_forward",
    "dooly_backend",
    "evaluate_form",
    "fold_layers",
    "form_names",
    "instance_sizes",
    "layer_kinds",
    "name_sizes",
    "rename_form",
    "tabulate",
    "trace",
    "tracing",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a class that loads torch
    """Return `Traced`, a subclass of `nn.Module`, when it is asked for."""
    if name == "Traced":
        from dooly.trace._traced import Traced

        return Traced
    raise AttributeError(f"module 'dooly.trace' has no attribute {name!r}; see dooly.trace.__all__")
